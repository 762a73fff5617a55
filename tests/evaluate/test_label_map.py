import pytest

from rayeffdet.errors import DataError
from rayeffdet.evaluate.label_map import read_label_map


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_label_map(str(path))


@pytest.mark.parametrize("ending", ["yaml", "yml"])
def test_a_yaml_map_may_have_gaps_and_any_names(tmp_path, ending):
    text = "1: disc\n17: '環 [ring]'\n3: 42\n"
    expected = {1: "disc", 17: "環 [ring]", 3: "42"}
    assert read(tmp_path, f"names.{ending}", text) == expected


def test_a_text_file_has_the_name_of_id_n_in_line_n(tmp_path):
    text = "disc\r\n  traffic light \nécran\n"
    assert read(tmp_path, "names.txt", text) == {1: "disc", 2: "traffic light", 3: "écran"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "- disc\n- ring\n", "a label map is a mapping of category ids to names"),
        ("a.yaml", "disc: 1\n", "a label map is a mapping of category ids to names"),
        ("a.yaml", "true: disc\n", "a label map is a mapping of category ids to names"),
        ("a.yaml", "", "a label map is a mapping of category ids to names"),
        ("a.yaml", "1: [disc\n", "not YAML: "),
        ("a.txt", b"disc\n\xff\n", "offset 5: not UTF-8 text"),
    ],
)
def test_what_is_no_label_map_is_refused_with_its_cause(tmp_path, name, content, message):
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, content)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path}/{name}: {message}")
    assert "\n" not in problem


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="there is no such label map; leave the field empty"):
        read_label_map(str(tmp_path / "gone.yaml"))


def test_a_folder_is_no_label_map(tmp_path):
    with pytest.raises(DataError, match="cannot be read: "):
        read_label_map(str(tmp_path))
