"""Tests of a packed micro-batch and of the order of batches: what is a label, a segment, padding; what comes when."""

import sysconfig
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_corpus, write_model

from data_prep import InputError
from data_prep.corpus import Corpus, pack_documents, save_plan
from data_prep.io.arithmetic import ceil_to_multiple
from megatron_davinci.config import parse_recipe
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.data.documents import Span
from megatron_davinci.data.held_out import HeldOut
from megatron_davinci.data.packed import PackedBatch, pack_micro_batch

SEQ_LENGTH = 16


def _batches(folder: Path, lengths: list[int], long_documents: str = "split", **changes: Any) -> RunBatches:
    masks = changes.pop("masks", None)
    corpus = write_corpus(folder / "corpus", lengths, masks=masks)
    stage = {"name": "only", "blend": [{"corpus": str(corpus)}], **changes.pop("stage", {})}
    recipe = {
        "model": str(write_model(folder / "model")),
        "megatron": changes.pop("megatron", {}),
        "data": {"seq_length": SEQ_LENGTH, "long_documents": long_documents, "stages": [stage]},
        "evaluation": changes.pop("evaluation", None),
        "batch": {"global_batch_size": len(lengths), **changes},
        "schedule": {"lr": 1.0},
        "checkpoint": {"dir": str(folder / "run")},
    }
    return RunBatches(parse_recipe(recipe))


def _pack(batches: RunBatches) -> tuple[list[Span], PackedBatch]:
    """All that the first batch holds in one row, as many times SEQ_LENGTH as it takes."""
    stage = batches.stages[0]
    units = stage.units(0)
    width = ceil_to_multiple(sum(stage.rules.unit_of(unit).room for unit in units), SEQ_LENGTH)
    spans = [span for unit in units for span in unit]
    return spans, pack_micro_batch(stage.documents, spans, width, stage.alignment, label_weight=1.0)


def _drawn(batches: RunBatches) -> list[int]:
    stage = batches.stages[0]
    return [span.document for batch in range(stage.num_batches) for unit in stage.units(batch) for span in unit]


@pytest.mark.parametrize("megatron", [{}, {"context_parallel_size": 2}, {"context_parallel_size": 4}])
def test_the_last_token_of_a_document_predicts_nothing(tmp_path: Path, megatron: dict[str, Any]) -> None:
    batches = _batches(tmp_path, [5, 4, 3, 1, 16], megatron=megatron)
    spans, batch = _pack(batches)
    alignment = 2 * megatron["context_parallel_size"] if megatron else 1
    predicted = dict(zip(batch.rows.tolist(), batch.labels.tolist(), strict=True))
    at = 0
    for span in spans:
        ids = batches.stages[0].documents.tokens(span).tolist()
        assert batch.tokens[0, at : at + span.length].tolist() == ids
        assert [predicted.pop(at + i) for i in range(span.length - 1)] == ids[1:]
        at += -(-span.length // alignment) * alignment
    assert not predicted  # no last token, no padding
    assert all((b - a) % alignment == 0 for a, b in pairwise(batch.boundaries))


def test_splitting_a_long_document_loses_no_label(tmp_path: Path) -> None:
    batches = _batches(tmp_path, [40])
    _, batch = _pack(batches)
    document = batches.stages[0].documents.corpora[0][0]
    assert len(batch.rows) == 39
    for row, label in zip(batch.rows.tolist(), batch.labels.tolist(), strict=True):
        assert batch.tokens[0, row] in document and label in document
    assert sorted(batch.labels.tolist()) == sorted(document[1:].tolist())


def test_a_loss_mask_leaves_out_labels_and_nothing_else(tmp_path: Path) -> None:
    masks = [[0, 1, 1, 0, 1], [1, 1, 1], [0, 0]]
    masked = _batches(tmp_path / "masked", [5, 3, 2], masks=masks)
    ignored = _batches(tmp_path / "ignored", [5, 3, 2], masks=masks, stage={"loss_mask": False})
    (_, honoured), (_, everything) = _pack(masked), _pack(ignored)
    assert honoured.tokens.equal(everything.tokens) and honoured.boundaries == everything.boundaries
    assert len(everything.rows) == 4 + 2 + 1 and len(honoured.rows) == 3 + 2 + 0
    for unit in masked.stages[0].units(0):
        for span in unit:
            assert masked.stages[0].documents.predicted(span).tolist() == [bool(x) for x in masks[span.document][1:]]


def test_padding_is_a_segment_of_its_own_and_positions_restart(tmp_path: Path) -> None:
    _, batch = _pack(_batches(tmp_path, [10, 16, 3]))
    lengths = np.diff(batch.boundaries)
    assert sorted(lengths.tolist()) == [3, 3, 10, 16]  # three documents, and three tokens of padding
    assert batch.boundaries[-1] == 2 * SEQ_LENGTH
    for start, end in pairwise(batch.boundaries):
        assert batch.position_ids[0, start:end].tolist() == list(range(end - start))


@pytest.mark.parametrize("context", [2, 4])
def test_context_ranks_share_every_segment_and_every_label(tmp_path: Path, context: int) -> None:
    _, batch = _pack(_batches(tmp_path, [5, 4, 3, 1, 16, 9], megatron={"context_parallel_size": context}))
    parts = [batch.of_context_rank(rank, context) for rank in range(context)]
    found = torch.cat([torch.stack([part.tokens[0], part.position_ids[0]]) for part in parts], 1)
    whole = torch.stack([batch.tokens[0], batch.position_ids[0]])
    assert sorted(map(tuple, found.t().tolist())) == sorted(map(tuple, whole.t().tolist()))
    seen = [
        (int(part.tokens[0, row]), int(label))
        for part in parts
        for row, label in zip(part.rows, part.labels, strict=True)
    ]
    assert sorted(seen) == sorted(
        (int(batch.tokens[0, r]), int(label)) for r, label in zip(batch.rows, batch.labels, strict=True)
    )
    # rank 0 has the first and the last chunk of a segment, so causal attention costs all ranks the same
    first = next((a, b) for a, b in pairwise(batch.boundaries) if b - a == 16)
    chunk = 16 // (2 * context)
    at = first[0] // context
    assert parts[0].position_ids[0, at : at + 2 * chunk].tolist() == [*range(chunk), *range(16 - chunk, 16)]


def test_every_document_comes_once_per_epoch_in_another_order(tmp_path: Path) -> None:
    batches = _batches(tmp_path, [3] * 50, global_batch_size=20)
    assert sorted(_drawn(batches)) == list(range(50)) and batches.num_steps == 3
    stage = batches.stages[0]
    assert sorted(stage._stream._order(1)) == list(range(50))
    assert stage._stream._order(1).tolist() != stage._stream._order(0).tolist()


def test_a_batch_over_the_end_of_an_epoch_names_both(tmp_path: Path) -> None:
    stage = _batches(tmp_path, [3] * 50, global_batch_size=20, stage={"epochs": 2}).stages[0]
    epochs = [[span.epoch for unit in stage.units(batch) for span in unit] for batch in range(5)]
    assert [sorted(set(names)) for names in epochs] == [[0], [0], [0, 1], [1], [1]]
    assert epochs[2].count(0) == 10 and len(epochs[2]) == 20
    assert [list(stage.epochs_finished_by(batch)) for batch in range(5)] == [[], [], [0], [], [1]]


def test_dropped_documents_are_never_drawn(tmp_path: Path) -> None:
    assert sorted(_drawn(_batches(tmp_path / "some", [40, 3, 50, 4, 60, 5], "drop", global_batch_size=1))) == [1, 3, 5]
    for unit in ("samples", "sequences"):
        with pytest.raises(InputError, match=r"stage only has no documents: all are held out, or longer"):
            _batches(tmp_path / unit, [40, 50], "drop", unit=unit)


@pytest.mark.parametrize("unit", ["samples", "sequences"])
def test_held_out_documents_are_never_drawn_and_are_what_is_evaluated(tmp_path: Path, unit: str) -> None:
    batches = _batches(
        tmp_path,
        [3, 5, 7, 9, 11, 13, 20],
        unit=unit,
        evaluation={"eval_interval": 1, "held_out_documents": 3},
        global_batch_size=2,
    )
    [(name, documents, sequences)] = batches.held_out.sources(batches.recipe, 0)
    held_out = {span.document for sequence in sequences for span in sequence}
    assert name == "corpus" and len(held_out) == 3 and len(documents) == 7
    assert set(_drawn(batches)) == set(range(7)) - held_out
    with pytest.raises(InputError, match=r"evaluation\.held_out_documents is 7, but .* has 7 documents to choose from"):
        _batches(tmp_path / "all", [3] * 7, evaluation={"eval_interval": 1, "held_out_documents": 7})


def test_corpora_of_one_name_are_told_apart(tmp_path: Path) -> None:
    recipe = _batches(tmp_path / "en", [3, 5, 7, 9], evaluation={"eval_interval": 1, "held_out_documents": 1}).recipe
    other = _batches(tmp_path / "zh", [3, 5, 7, 9]).recipe.data.stages[0].blend
    stage = recipe.data.stages[0].model_copy(update={"blend": [*recipe.data.stages[0].blend, *other]})
    both = recipe.model_copy(update={"data": recipe.data.model_copy(update={"stages": [stage]})})
    assert [name for name, *_ in HeldOut(both).sources(both, 0)] == ["en/corpus", "zh/corpus"]


@pytest.mark.parametrize("unit,size", [("sequences", 4), ("tokens", 4 * SEQ_LENGTH)])
def test_batches_out_of_a_plan_cover_the_corpus(tmp_path: Path, unit: str, size: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 60).tolist()
    batches = _batches(tmp_path, lengths, unit=unit, global_batch_size=size)
    stage = batches.stages[0]
    seen = np.zeros(60, dtype=np.int64)
    for batch in range(stage.num_batches):
        sequences = stage.units(batch)
        assert len(sequences) == 4 or batch == stage.num_batches - 1
        for sequence in sequences:
            assert sum(span.length for span in sequence) <= SEQ_LENGTH
            for span in sequence:
                seen[span.document] += span.length
    assert seen.tolist() == lengths


def test_a_plan_that_was_made_on_start_is_kept_and_ties_later_layouts(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(1, 16, 40).tolist()
    first = _batches(tmp_path, lengths, unit="sequences")
    (tmp_path / "run").mkdir()
    first.stages[0].keep_plan()
    same = parse_recipe({**first.recipe.model_dump(), "seed": first.recipe.seed})
    assert RunBatches(same).stages[0].order == first.stages[0].order
    with pytest.raises(InputError, match="packed with --document-alignment 4"):
        RunBatches(parse_recipe({**first.recipe.model_dump(), "megatron": {"context_parallel_size": 2}}))


def test_a_kept_plan_of_other_rules_is_not_taken_up(tmp_path: Path) -> None:
    """A run that was stopped before its first checkpoint may begin again with documents held out."""
    lengths = np.random.default_rng(0).integers(1, 16, 40).tolist()
    first = _batches(tmp_path, lengths, unit="sequences", global_batch_size=4)
    (tmp_path / "run").mkdir()
    first.stages[0].keep_plan()
    changed = {**first.recipe.model_dump(), "evaluation": {"eval_interval": 1, "held_out_documents": 5}}
    again = RunBatches(parse_recipe(changed))
    [(_, _, sequences)] = again.held_out.sources(again.recipe, 0)
    held_out = {span.document for sequence in sequences for span in sequence}
    assert len(held_out) == 5 and not held_out & set(_drawn(again))


def test_a_plan_that_takes_a_document_in_part_is_refused(tmp_path: Path) -> None:
    corpus = Corpus(write_corpus(tmp_path / "planned", [5, 40, 7]))
    whole = pack_documents(corpus.lengths, SEQ_LENGTH, "split")
    stage = {"plan": str(tmp_path / "plan"), "blend": [{"corpus": str(tmp_path / "planned")}]}
    save_plan(whole, [corpus], tmp_path / "plan")
    batches = _batches(tmp_path, [5, 40, 7], "error", unit="sequences", stage=stage)  # the plan has split already
    assert batches.stages[0].tally_of_an_epoch().tokens == 52
    (tmp_path / "plan").unlink()
    first = int(np.flatnonzero(whole.document == 1)[0])
    start = whole.start.copy()
    start[first] += 1
    save_plan(replace(whole, start=start), [corpus], tmp_path / "plan")
    with pytest.raises(InputError, match="takes a document in part, or twice"):
        _batches(tmp_path / "again", [5, 40, 7], unit="sequences", stage=stage)


def test_padding_is_cut_small(tmp_path: Path) -> None:
    stage = _batches(tmp_path, [16, 16], stage={"seq_length": 2048}).stages[0]
    filler = pack_micro_batch(stage.documents, [], 2048, 1, 1.0)
    assert max(b - a for a, b in pairwise(filler.boundaries)) <= 512 and len(filler.rows) == 0


def test_a_plan_for_context_parallelism_serves_every_smaller_layout(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(1, 16, 40).tolist()
    corpus = Corpus(write_corpus(tmp_path / "planned", lengths))
    save_plan(pack_documents(corpus.lengths, SEQ_LENGTH, "error", document_alignment=4), [corpus], tmp_path / "plan")
    stage = {"plan": str(tmp_path / "plan"), "blend": [{"corpus": str(tmp_path / "planned")}]}
    alone, two = (
        _batches(tmp_path / str(size), lengths, unit="sequences", stage=stage, megatron={"context_parallel_size": size})
        for size in (1, 2)
    )
    assert alone.stages[0].alignment == two.stages[0].alignment == 4
    assert _pack(alone)[1].tokens.equal(_pack(two)[1].tokens)


@pytest.mark.parametrize("megatron", [{}, {"context_parallel_size": 2}, {"context_parallel_size": 8}])
def test_a_batch_of_1024_samples_holds_those_whatever_the_layout(tmp_path: Path, megatron: dict[str, Any]) -> None:
    """Lengths of this interpreter's source files, four bytes to a token."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    lengths = [min(2048, max(1, path.stat().st_size // 16)) for path in files][:2500]
    stage = {"seq_length": 2048}
    found = _batches(tmp_path, lengths, global_batch_size=1024, stage=stage, megatron=megatron).stages[0]
    plain = _batches(tmp_path / "plain", lengths, global_batch_size=1024, stage=stage).stages[0]
    for batch, size in enumerate([1024, 1024, len(lengths) - 2048]):
        units = found.units(batch)
        drawn = [span.document for unit in units for span in unit]
        assert len(drawn) == len(set(drawn)) == size
        assert drawn == [span.document for unit in plain.units(batch) for span in unit]
        for replicas in (1, 2, 8):
            dealt = found.rules.deal([found.rules.unit_of(unit) for unit in units], replicas)
            assert sorted(number for rows in dealt for row in rows for number in row.units) == list(range(len(units)))
            widths = sum(row.width for rows in dealt for row in rows)
            assert sum(span.length for unit in units for span in unit) > 0.97 * widths
