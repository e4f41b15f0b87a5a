"""Laws of a packed micro-batch: what is a label, what is a segment, what is padding."""

from pathlib import Path

import numpy as np
import pytest
from conftest import write_corpus, write_model

from data_prep import InputError
from megatron_davinci.data.batches import GlobalBatches, Span
from megatron_davinci.data.packed import PackedBatch, pack_micro_batch
from megatron_davinci.recipe import parse_recipe

SEQ_LENGTH = 16


def _batches(folder: Path, lengths: list[int], long_documents: str = "split", **batch: object) -> GlobalBatches:
    corpus = write_corpus(folder / "corpus", lengths)
    return GlobalBatches(
        parse_recipe(
            {
                "model": str(write_model(folder / "model")),
                "data": {
                    "seq_length": SEQ_LENGTH,
                    "long_documents": long_documents,
                    "stages": [{"name": "only", "blend": [{"corpus": str(corpus)}]}],
                },
                "batch": {"global_size": len(lengths), **batch},
                "schedule": {"lr": 1.0},
                "checkpoint": {"dir": str(folder / "run")},
            }
        )
    )


def _pack(batches: GlobalBatches) -> tuple[list[list[Span]], PackedBatch]:
    stage, sequences = batches.at(0)
    return sequences, pack_micro_batch(stage, sequences, SEQ_LENGTH, label_weight=1.0)


def test_the_last_token_of_a_document_predicts_nothing(tmp_path: Path) -> None:
    batches = _batches(tmp_path, [5, 4, 3, 1, 16])
    sequences, batch = _pack(batches)
    for number, sequence in enumerate(sequences):
        at = number * SEQ_LENGTH
        for span in sequence:
            ids = batches.stages[0].tokens(span)
            assert batch.tokens[0, at : at + span.length].tolist() == ids.tolist()
            assert batch.labels[0, at : at + span.length - 1].tolist() == ids[1:].tolist()
            assert batch.loss_weights[0, at : at + span.length].tolist() == [1.0] * (span.length - 1) + [0.0]
            at += span.length
        assert batch.loss_weights[0, at : (number + 1) * SEQ_LENGTH].sum() == 0  # padding


def test_splitting_a_long_document_loses_no_label(tmp_path: Path) -> None:
    batches = _batches(tmp_path, [40])
    sequences, batch = _pack(batches)
    document = batches.stages[0].corpora[0][0]
    assert batch.loss_weights.sum() == 39 == batches.stages[0].num_labels(sequences)
    for number, sequence in enumerate(sequences):
        [span] = sequence
        predicted = batch.labels[0, number * SEQ_LENGTH :][: span.length][
            batch.loss_weights[0, number * SEQ_LENGTH :][: span.length] > 0
        ]
        assert predicted.tolist() == document[span.start + 1 : span.start + span.length + 1].tolist()


def test_padding_is_a_segment_of_its_own_and_positions_restart(tmp_path: Path) -> None:
    _, batch = _pack(_batches(tmp_path, [10, 16, 3]))
    assert sorted(batch.cu_seqlens.diff().tolist()) == [3, 3, 10, 16]  # three documents, and three tokens of padding
    assert batch.cu_seqlens[-1] == 2 * SEQ_LENGTH
    for start, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        assert batch.position_ids[0, start:end].tolist() == list(range(end - start))


def test_every_document_comes_once_per_epoch_in_another_order(tmp_path: Path) -> None:
    batches = _batches(tmp_path, [3] * 50, global_size=20)
    stage = batches.stages[0]
    drawn = [s.document for step in range(batches.num_steps) for q in batches.at(step)[1] for s in q]
    assert sorted(drawn) == list(range(50)) and batches.num_steps == 3
    assert sorted(stage._epoch_order(1)) == list(range(50))
    assert stage._epoch_order(1).tolist() != stage._epoch_order(0).tolist()


def test_dropped_documents_are_never_drawn(tmp_path: Path) -> None:
    batches = _batches(tmp_path / "some", [40, 3, 50, 4, 60, 5], "drop", global_size=1)
    drawn = [s.document for step in range(batches.num_steps) for q in batches.at(step)[1] for s in q]
    assert sorted(drawn) == [1, 3, 5] and batches.num_steps == 3
    for unit in ("samples", "sequences"):
        with pytest.raises(InputError, match="every document is longer"):
            _batches(tmp_path / unit, [40, 50], "drop", unit=unit)


@pytest.mark.parametrize("unit,size", [("sequences", 4), ("tokens", 4 * SEQ_LENGTH)])
def test_batches_out_of_a_plan_cover_the_corpus(tmp_path: Path, unit: str, size: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 60).tolist()
    batches = _batches(tmp_path, lengths, unit=unit, global_size=size)
    seen = np.zeros(60, dtype=np.int64)
    for step in range(batches.num_steps):
        sequences = batches.at(step)[1]
        assert len(sequences) == 4 or step == batches.num_steps - 1
        for sequence in sequences:
            assert sum(span.length for span in sequence) <= SEQ_LENGTH
            for span in sequence:
                seen[span.document] += span.length
    assert seen.tolist() == lengths
