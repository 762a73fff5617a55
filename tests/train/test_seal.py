import pytest

from rayeffdet.errors import CheckpointError
from rayeffdet.train.seal import is_sealed, open_sealed, seal

PAYLOAD = bytes(range(256)) * 3
HEADER = b"what this file is\n"
SEALED = seal(PAYLOAD, passphrase="tlt_encode", header=HEADER)
FRONT = len(SEALED) - len(PAYLOAD) - 16 - len(HEADER)


def problem_of(blob, passphrase="tlt_encode"):
    with pytest.raises(CheckpointError) as caught:
        open_sealed(blob, passphrase=passphrase, name="a.tlt")
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("a.tlt: ")
    return str(caught.value)


def flipped(position):
    blob = bytearray(SEALED)
    blob[position] ^= 1
    return bytes(blob)


@pytest.mark.parametrize("payload", [PAYLOAD, b""])
@pytest.mark.parametrize("passphrase", ["tlt_encode", "Schlüssel 鍵"])
def test_what_was_sealed_is_opened_again(payload, passphrase):
    blob = seal(payload, passphrase=passphrase, header=HEADER)
    assert is_sealed(blob)
    assert open_sealed(blob, passphrase=passphrase, name="a.tlt") == payload


def test_the_header_is_readable_and_the_payload_is_not():
    assert HEADER in SEALED
    assert PAYLOAD[:16] not in SEALED


def test_the_same_payload_never_gives_the_same_bytes():
    other = seal(PAYLOAD, passphrase="tlt_encode", header=HEADER)
    assert other[-32:] != SEALED[-32:]


def test_other_bytes_are_not_taken_for_sealed():
    assert not is_sealed(b"PK\x03\x04" + SEALED)
    assert not is_sealed(b"")


def test_a_wrong_key_is_told_from_damage():
    assert "encryption_key is not the key" in problem_of(SEALED, "tlt_encodes")


@pytest.mark.parametrize("kept", [20, 80, len(SEALED) // 2, len(SEALED) - 1])
def test_a_file_that_was_cut_short_is_called_so(kept):
    problem = problem_of(SEALED[:kept])
    assert "cut short" in problem
    assert f"{kept:,}" in problem


@pytest.mark.parametrize(
    "position",
    [
        pytest.param(19, id="salt"),
        pytest.param(35, id="key check"),
        pytest.param(51, id="nonce"),
        pytest.param(63, id="header length"),
        pytest.param(67, id="payload length"),
        pytest.param(FRONT - 1, id="digest"),
        pytest.param(FRONT, id="header"),
        pytest.param(FRONT + len(HEADER), id="ciphertext"),
        pytest.param(len(SEALED) - 1, id="tag"),
    ],
)
def test_a_flipped_bit_anywhere_is_damage_even_with_the_right_key(position):
    assert "damaged" in problem_of(flipped(position))


def test_bytes_after_the_end_are_damage():
    assert "damaged" in problem_of(SEALED + b"\0")
