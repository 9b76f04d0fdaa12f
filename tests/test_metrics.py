"""What the name of a metric says about it."""

from __future__ import annotations

import pytest

from fkd.metrics import higher_is_better

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
