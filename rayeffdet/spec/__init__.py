"""What a user may say: the spec, its loading and its errors."""
