"""A plain Lightning module that trains with label smoothing and validates on hard labels.

python examples/lightning_module.py
"""

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

from labelsmooth.torch import CrossEntropyLoss


class Classifier(L.LightningModule):
    def __init__(self, smoothing=0.1):
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
        self.train_loss = CrossEntropyLoss(label_smoothing=smoothing)
        self.nll = CrossEntropyLoss()  # evaluation is never smoothed

    def training_step(self, batch, _):
        images, labels = batch
        loss = self.train_loss(self.model(images), labels)
        self.log("smoothed_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, _):
        images, labels = batch
        logits = self.model(images)
        self.log("val_nll", self.nll(logits, labels), batch_size=len(labels))
        self.log("val_accuracy", (logits.argmax(dim=1) == labels).float().mean(), batch_size=len(labels))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main():
    L.seed_everything(0, verbose=False)
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))
    training, validation = random_split(data, [0.8, 0.2])
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=8, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(), DataLoader(training, 64, shuffle=True), DataLoader(validation, 256))
    figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
    print(f"smoothed training loss {figures['smoothed_loss']:.4f} (ε=0.1, floor 0.5003)")
    print(f"validation NLL on hard labels {figures['val_nll']:.4f}, accuracy {figures['val_accuracy']:.4f}")


if __name__ == "__main__":
    main()
