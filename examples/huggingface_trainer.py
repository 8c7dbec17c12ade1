"""Label smoothing in Hugging Face's Trainer, through `compute_loss_func`.

The labels are shifted once, padding (-100) is ignored, and the mean is over the tokens of the whole batch, so that
accumulated gradients are those of the large batch. A tiny model with random weights: nothing is downloaded.

    python examples/huggingface_trainer.py
"""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from labelsmooth.torch import cross_entropy

WORDS, LENGTH, PADDING = 50, 16, -100


def smoothed_loss(outputs, labels, num_items_in_batch=None):
    """Position i predicts token i + 1. Without gradients, which is evaluation, nothing is smoothed."""
    logits = outputs.logits[:, :-1].flatten(0, 1)
    smoothing = 0.1 if logits.requires_grad else 0.0
    targets = labels[:, 1:].flatten()
    return cross_entropy(logits, targets, label_smoothing=smoothing, normalizer=num_items_in_batch)


def mean_of_means(outputs, labels, num_items_in_batch=None):
    """What goes wrong without `normalizer`: every small batch counts alike, however much of it is padding.

    With a `compute_loss_func` the Trainer does not divide by the number of accumulated batches, so this has to.
    """
    return smoothed_loss(outputs, labels) / ACCUMULATED


def sentences(count, seed):
    """Texts of 3 to 16 tokens, padded to one length."""
    generator = torch.Generator().manual_seed(seed)
    for length in torch.randint(3, LENGTH + 1, (count,), generator=generator).tolist():
        tokens = torch.randint(1, WORDS, (LENGTH,), generator=generator)
        padding = torch.arange(LENGTH) >= length
        labels = tokens.masked_fill(padding, PADDING)
        labels[0] = PADDING  # no position predicts the first token; older Trainers would count it
        yield {
            "input_ids": tokens.masked_fill(padding, 0),
            "attention_mask": (~padding).long(),
            "labels": labels,
        }


def train(batch_size, accumulate, loss=smoothed_loss):
    """The weights after 4 steps of 8 sentences, and the evaluation loss; float64, so that rounding does not show."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS, n_positions=LENGTH, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).double()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulate, max_steps=4,
            optim="sgd", learning_rate=0.5, max_grad_norm=0.0, seed=0, use_cpu=True, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(
            model,
            arguments,
            train_dataset=list(sentences(32, seed=1)),
            eval_dataset=list(sentences(8, seed=2)),
            compute_loss_func=loss,
        )
        trainer.train()
        evaluation = trainer.evaluate()["eval_loss"]
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), evaluation, model


ACCUMULATED = 4
large, eval_loss, model = train(batch_size=8, accumulate=1)
accumulated, _, _ = train(batch_size=2, accumulate=ACCUMULATED)
wrong, _, _ = train(batch_size=2, accumulate=ACCUMULATED, loss=mean_of_means)

print(f"{len(large)} weights after 4 steps of 8 sentences")
print(f"8 sentences at once against 4 times 2: largest difference {(large - accumulated).abs().max():.1e}")
print(f"the same with a mean of means: largest difference {(large - wrong).abs().max():.1e}")

texts = list(sentences(8, seed=2))
batch = {name: torch.stack([text[name] for text in texts]) for name in texts[0]}
with torch.inference_mode():
    nll = model(**batch).loss.item()  # transformers' own loss: hard labels, shifted inside
print(f"evaluation loss {eval_loss:.6f}, the model's own NLL {nll:.6f}")
