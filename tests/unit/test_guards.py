"""Filters, guards and metrics that no other unit test sees: each of these fails where its comparison is inverted."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_git_source import Repository
from test_samples import FACTS, TALK, change_of

from data_prep import InputError
from data_prep.changes.swe_bench import swe_bench_verified
from data_prep.samples.filters import MAX_PYTHON_FILES, MIN_STARS, reject_general, reject_python
from data_prep.sources.git import GitSource
from data_prep.sources.git_graph import NotReplayable
from data_prep.sources.landings import PullRequest
from megatron_davinci.config import parse_recipe
from megatron_davinci.config.sections import Schedule
from megatron_davinci.rl.answers import can_be_boxed
from megatron_davinci.rl.grading import Score, ScoredGroup, group_metrics
from megatron_davinci.rl.rollout_files import Group, PromptSpec, Response, remove_after, rollout_file
from megatron_davinci.train.schedule import warmup_steps


def test_base_commits_of_swe_bench_are_refused_whatever_the_repository_is_called() -> None:
    _, commits = swe_bench_verified()
    commit = min(commits)
    assert reject_general(change_of("someone/renamed", base=commit)) == "swe_bench_verified"
    recorded = replace(TALK, recorded_base=commit)
    assert reject_general(change_of("someone/renamed", conversation=recorded)) == "swe_bench_verified"
    assert reject_general(change_of("someone/renamed", base="d" * 40)) is None


def test_the_python_format_wants_stars_and_few_files() -> None:
    for stars, reason in ((MIN_STARS - 1, "too_few_stars"), (MIN_STARS, None)):
        assert reject_python(change_of("a/b", facts=replace(FACTS, stars=stars))) == reason
    change = change_of("a/b")
    [commit] = change.commits
    for count, reason in ((MAX_PYTHON_FILES, None), (MAX_PYTHON_FILES + 1, "too_many_python_files")):
        files = tuple(replace(commit.files[0], path=f"{n}.py", old_path=f"{n}.py") for n in range(count))
        assert reject_python(replace(change, commits=(replace(commit, files=files),))) == reason


@pytest.mark.parametrize("subject, kept", [("Both (#7)", True), ("Both", False)])
def test_a_chain_that_landed_as_something_else_is_left_out_unless_the_commit_names_it(
    tmp_path: Path, subject: str, kept: bool
) -> None:
    repository = Repository(tmp_path / "repository")
    base = repository.commit("Start", {"a.py": b"a = 1\n"})
    repository.git("checkout", "-q", "-b", "topic")
    repository.commit("First", {"a.py": b"a = 2\n"})
    own = repository.commit("Second", {"b.py": b"b = 1\n"})
    repository.git("checkout", "-q", "main")
    landed = repository.commit(subject, {"a.py": b"a = 9\n"})  # another patch than the branch's
    source = GitSource(repository.path)
    planned = PullRequest("squash", 7, "Both", "", base, landed, own)
    if kept:
        assert [commit.sha for commit in source.record(planned).commits] == [landed]
    else:
        with pytest.raises(NotReplayable, match="landed_differently"):
            source.record(planned)
    source.git.close()


def test_a_share_of_steps_as_warm_up_is_rounded_up() -> None:
    schedule = Schedule(lr=1.0, lr_warmup_fraction=0.05)
    assert [warmup_steps(schedule, steps) for steps in (10, 20, 21, 100, 1)] == [1, 1, 2, 5, 0]
    assert warmup_steps(schedule, 21) == math.ceil(0.05 * 21)


def test_rollouts_after_a_step_are_forgotten_and_those_for_it_stay(tmp_path: Path) -> None:
    for step in range(4):
        rollout_file(tmp_path, step).write_bytes(b"")
    remove_after(tmp_path, 2)
    assert sorted(tmp_path.iterdir()) == [rollout_file(tmp_path, step) for step in range(3)]
    remove_after(tmp_path, -1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text, can", [(b"}{", False), (b"{}", True), (b"{", False), (b"}", False), (b"a{b}c{}", True)])
def test_a_box_holds_balanced_braces_alone(text: bytes, can: bool) -> None:
    assert can_be_boxed(text) is can


def test_shares_of_responses_are_of_those_that_were_cut_off_or_never_closed() -> None:
    responses = [Response([1], [0.0], finished) for finished in (True, True, True, False)]
    scores = [Score(None, True, 0.0, 1.0, closed, 1) for closed in (True, False, False, False)]
    group = ScoredGroup(Group(PromptSpec(0, 0, 1, 0, 0, "-"), responses), scores, [0.0] * 4, [True] * 4)
    told = group_metrics([group])
    assert (told["truncated_fraction"], told["unclosed_fraction"]) == (0.25, 0.75)
    assert (told["zero_advantage_fraction"], told["zero_accuracy_variance_fraction"]) == (1.0, 1.0)


@pytest.mark.parametrize("size", [0, -2])
def test_parallel_sizes_start_at_one(recipe_values: dict[str, Any], size: int) -> None:
    for name in ("context_parallel_size", "tensor_model_parallel_size", "pipeline_model_parallel_size"):
        with pytest.raises(InputError, match=rf"{name} is {size}; it must be at least 1"):
            parse_recipe({**recipe_values, "megatron": {name: size}})
