"""One task per file: spec in, typed result out."""
