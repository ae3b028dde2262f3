import pytest
from pydantic import SecretStr

from app.errors import KeyRequired
from app.service.access import check_key


def test_open_without_a_key_and_named_with_one() -> None:
    assert check_key(None, None) == "local"
    assert check_key(SecretStr("s3cret"), "s3cret") == "key"


@pytest.mark.parametrize("presented", [None, "", "s3cre", "s3cret ", "ключ"])
def test_anything_else_is_refused_with_the_remedy(presented: str | None) -> None:
    with pytest.raises(KeyRequired, match="ESPALIER_KEY"):
        check_key(SecretStr("s3cret"), presented)
