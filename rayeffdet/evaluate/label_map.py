"""Class names from a file, for spec fields that name one."""

import yaml

from rayeffdet import storage
from rayeffdet.errors import DataError

YAML_ENDINGS = (".yaml", ".yml")


def read_label_map(path: str) -> dict[int, str]:
    """Returns category id to name, from a YAML mapping or a text file with one name per line.

    Line n of a text file is the name of id n, counted from 1.

    Raises:
        DataError: The file is missing or not of one of these forms.
    """
    try:
        text = storage.read_bytes(path).decode()
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such label map; leave the field empty for the names in the data"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: offset {error.start}: not UTF-8 text") from error
    if not path.endswith(YAML_ENDINGS):
        return dict(enumerate((line.strip() for line in text.splitlines()), start=1))
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: not YAML: {first}") from error
    if not isinstance(document, dict) or not all(type(key) is int for key in document):
        raise DataError(f"{path}: a label map is a mapping of category ids to names, as `1: cat`")
    return {key: str(name) for key, name in document.items()}
