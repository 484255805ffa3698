from __future__ import annotations

import pytest

from toolrl_box import errors
from toolrl_box.errors import ConfigError, ToolRLError, did_you_mean, lookup, unknown


def test_every_public_exception_descends_from_the_base_so_the_command_line_catches_it() -> None:
    exceptions = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert exceptions == {
        "ToolRLError",
        "ConfigError",
        "DataError",
        "ModelError",
        "RunFolderError",
        "CheckpointError",
        "JudgeError",
        "TeamError",
        "MissingExtraError",
    }
    assert all(issubclass(vars(errors)[name], ToolRLError) for name in exceptions)


def test_a_damaged_checkpoint_is_also_a_run_folder_error() -> None:
    assert issubclass(errors.CheckpointError, errors.RunFolderError)


def test_a_near_miss_is_answered_with_the_intended_name_and_all_choices() -> None:
    error = unknown("scheme", "interleavd", ["rl", "interleaved"])
    assert str(error) == (
        "unknown scheme 'interleavd'; did you mean 'interleaved'? one of: interleaved, rl"
    )


def test_a_name_close_to_nothing_gets_no_guess() -> None:
    assert did_you_mean("zzz", ["rl", "interleaved"]) == ""
    assert str(unknown("scheme", "zzz", ["rl"])) == "unknown scheme 'zzz'; one of: rl"


def test_lookup_returns_the_entry_of_a_known_name() -> None:
    assert lookup("scheme", "rl", {"rl": 1, "sft": 2}) == 1


def test_lookup_of_an_unknown_name_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="unknown format 'hermez'; did you mean 'hermes'"):
        lookup("format", "hermez", {"hermes": object()})
