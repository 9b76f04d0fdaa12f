"""What the name of a metric says about it."""

from __future__ import annotations

import pytest
import torch

import fkd
from fkd import batch, student, trainable
from fkd.metrics import accuracy, higher_is_better

HIGHER = """accuracy eval/accuracy valAccuracy macroF1 f1/macro rougeL rouge2 bleu4 AUC mAP mIoU
mAP@0.5 recall@10 R2 spearman stsb/spearman_cosine squad/em exact_match pass@1 hit_rate agreement
cosine_similarity neg_mean_squared_error neg_log_loss -loss 1-error 1-shot_accuracy
score top1 kendall_tau log_likelihood"""
LOWER = """perplexity val_ppl loss/total loss loss/accuracy eval/loss/f1 train_loss valLoss testloss
dice_loss word_error_rate wer ece nll mse RMSE kl_div cross_entropy crossentropy log_loss
brier_score top5_error error_rate false_positive_rate expected_calibration_error 1-f1
neg_log_likelihood negative_log_likelihood accuracy_drop bits_per_byte latency"""
SILENT = "half width x step calibration metric gmean tokens_per_s size entropy"


@pytest.mark.parametrize("name", HIGHER.split())
def test_higher_is_better(name):
    assert higher_is_better(name) is True


@pytest.mark.parametrize("name", LOWER.split())
def test_lower_is_better(name):
    assert higher_is_better(name) is False


@pytest.mark.parametrize("name", SILENT.split())
def test_a_name_that_does_not_say(name):
    assert higher_is_better(name) is None


def test_accuracy_counts_labels_that_are_classes():
    objective = fkd.Objective(
        fkd.term(fkd.losses.cross_entropy, student.logits, batch.labels),
        student=trainable(torch.nn.Linear(3, 3)),
    )
    state = fkd.loops.train_step(objective, torch.optim.SGD, compile=False).init()
    rows = {"input": torch.randn(4, 6, 3), "labels": torch.full((4, 6), -100)}
    right = objective.models["student"].module(rows["input"]).argmax(-1)  # type: ignore[misc]
    rows["labels"][:, 1:3] = right[:, 1:3]
    metrics = {"accuracy": fkd.metric(accuracy, student.logits, batch.labels)}
    assert fkd.loops.evaluate(objective, state, [rows], metrics=metrics)["accuracy"] == 1.0
    metrics["accuracy"] = fkd.metric(
        accuracy, student.logits, batch.labels, where=batch.labels > -1000
    )
    assert fkd.loops.evaluate(objective, state, [rows], metrics=metrics)["accuracy"] == 1.0
