"""Files: an address is no path of this machine."""

import pathlib

import pytest

from lmtiny import files
from lmtiny.errors import UserError


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://b", "file:///etc", "HF://datasets/x", "az+v1.0://b"])
def test_an_address_is_refused_where_a_local_path_belongs_however_it_is_spelt(address):
    for spelt in (address, pathlib.Path(address), str(pathlib.Path(address))):
        with pytest.raises(UserError, match="^--workdir: .* is an address") as refused:
            files.refuse_url(spelt, "--workdir")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("path", ["", ".", "runs/a", "/tmp/a", "runs/gs:/a", "C:/a", "C:\\a", "a:b", "12:/a", "~/a"])
def test_a_path_is_no_address(path):
    files.refuse_url(path, "--workdir")
    files.refuse_url(pathlib.Path(path), "--workdir")
