"""Does label smoothing help a Hugging Face text classifier? A small one from scratch, so that nothing is downloaded.

For a pretrained one, take `AutoModelForSequenceClassification.from_pretrained(...)` and its tokenizer instead.

    python examples/compare_text.py
"""

import numpy as np
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from labelsmooth.comparison import Predictions, compare
from labelsmooth.torch import CrossEntropyLoss

GOOD, BAD = ["good", "fine", "great", "lovely", "superb"], ["bad", "poor", "awful", "bland", "dreadful"]
OTHER = ["the", "a", "food", "place", "staff", "was", "were", "and", "very", "rather", "quite", "we", "they", "today"]
WORDS = {word: number for number, word in enumerate(["[PAD]", *GOOD, *BAD, *OTHER])}
LENGTH, WRONG = 12, 0.2


def reviews(count, seed):
    """Token ids ``[count, LENGTH]``, and 1 where good words outnumber bad ones."""
    rng = np.random.default_rng(seed)
    texts = rng.choice([*GOOD, *BAD, *OTHER, *OTHER], (count, LENGTH))
    score = np.isin(texts, GOOD).sum(axis=1) - np.isin(texts, BAD).sum(axis=1)
    texts, score = texts[score != 0], score[score != 0]
    return torch.tensor(np.vectorize(WORDS.get)(texts)), (score > 0).astype(np.int64)


test_tokens, test_labels = reviews(2000, seed=10_000)


def train(seed, smoothing):
    """20 % of the training labels are wrong, as reviewers' stars are; everything random follows from the seed."""
    tokens, labels = reviews(1500, seed=seed)
    val_tokens, val_labels = reviews(600, seed=5000 + seed)
    wrong = np.random.default_rng(seed).random(len(labels)) < WRONG
    targets = torch.tensor(np.where(wrong, 1 - labels, labels))
    torch.manual_seed(seed)
    config = DistilBertConfig(
        vocab_size=len(WORDS), max_position_embeddings=LENGTH, dim=32, hidden_dim=64, n_layers=1, n_heads=2,
        num_labels=2,
    )  # fmt: skip
    model = DistilBertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss_function = CrossEntropyLoss(label_smoothing=smoothing)
    for _ in range(6):
        for rows in torch.randperm(len(tokens)).split(64):
            loss = loss_function(model(input_ids=tokens[rows]).logits, targets[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    with torch.inference_mode():
        val, test = (model(input_ids=each).logits.numpy() for each in (val_tokens, test_tokens))
    return Predictions(val, val_labels, test, test_labels)


if __name__ == "__main__":
    result = compare(train, smoothing=[0, 0.1, 0.2], seeds=3, name="reviews, 20 % of labels wrong")
    print(result.analysis.table(), result.answer, *result.analysis.notes, sep="\n\n")
