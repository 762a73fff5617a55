"""A training batch as a picture: what the network sees, after all augmentation."""

from collections.abc import Mapping
from io import BytesIO

from PIL import Image

from rayeffdet import storage
from rayeffdet.data.loader import Batch
from rayeffdet.evaluate.draw import draw_detections, grid

MOST_IMAGES = 16
COLUMNS = 4
# Captions on smaller pictures would hide what is in them.
SMALLEST_SIDE = 320


def write_preview(batch: Batch, class_names: Mapping[int, str], *, path: str) -> None:
    """Writes the first images of a batch with their boxes as one JPEG.

    Args:
        batch: Ready for the device.
        class_names: Category id to name.
        path: Path or URI.
    """
    pictures = []
    for image_3HW, boxes_G4, labels_G in zip(
        batch.images_B3HW[:MOST_IMAGES], batch.boxes_BG4, batch.labels_BG, strict=False
    ):
        kept = labels_G >= 0
        image = Image.fromarray(image_3HW.permute(1, 2, 0).numpy())
        zoom = max(1, -(-SMALLEST_SIDE // max(image.size)))
        pictures.append(
            draw_detections(
                image.resize((image.width * zoom, image.height * zoom)),
                boxes_G4[kept].numpy() * zoom,
                (labels_G[kept] + 1).numpy(),
                None,
                class_names,
            )
        )
    encoded = BytesIO()
    grid(pictures, COLUMNS).save(encoded, "JPEG", quality=90)
    storage.write_atomic(path, encoded.getvalue())
