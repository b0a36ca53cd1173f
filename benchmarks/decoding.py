"""How many cores feed one accelerator with ImageNet?

    python benchmarks/decoding.py

JPEGs of ImageNet's usual size, 500 × 375 pixels and about 110 kB, are decoded, cropped to 224 × 224, mirrored and
distorted, one by one on one core and through the input stream with one and two worker processes. They are synthetic:
noise whose amplitude falls with the frequency as in photographs, so that no dataset is needed.
"""

import argparse
import functools
import importlib.metadata
import os
import statistics
import time

import cv2
import numpy as np
from measure import interleaved, record

from repmlp_jax.data.decoding import decode
from repmlp_jax.data.imagenet import training_example
from repmlp_jax.data.policies import POLICIES
from repmlp_jax.data.stream import make_stream

HEIGHT, WIDTH, BYTES = 375, 500, 110_000
SIZE = (224, 224)
BATCH_SIZE = 64


def photograph(seed: int) -> bytes:
    """A synthetic JPEG, of the quality that comes closest to ImageNet's number of bytes."""
    random = np.random.default_rng(seed)
    frequencies = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    spectrum = np.fft.rfft2(random.normal(size=(3, HEIGHT, WIDTH))) / np.maximum(frequencies, 1 / WIDTH)
    brightness, *colours = np.fft.irfft2(spectrum, (HEIGHT, WIDTH))
    planes = [brightness / brightness.std() * 55 + 120, *(plane / plane.std() * 15 + 128 for plane in colours)]
    image = cv2.cvtColor(np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8), cv2.COLOR_YCrCb2BGR)
    versions = (
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes() for quality in range(50, 100, 2)
    )
    return min(versions, key=lambda jpeg: abs(len(jpeg) - BYTES))


def transform(policy: str):
    """What the stream does to an example."""
    return functools.partial(training_example, size=SIZE, policy=POLICIES.get(policy))


def through_stream(source: list[dict], policy: str, workers: int, batches: int) -> float:
    """Images a second, once all workers have begun."""
    with make_stream(source, transform(policy), batch_size=BATCH_SIZE, seed=0, workers=workers) as stream:
        # What lies ready when the clock starts was made before it: two batches of each worker, as at its end.
        for _ in range(4 * workers):
            next(stream)
        start = time.perf_counter()
        for _ in range(batches):
            next(stream)
        return BATCH_SIZE * batches / (time.perf_counter() - start)


def processor_seconds(function) -> float:
    """Seconds that this process computes, the median of three runs."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def main():
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args()

    cv2.setNumThreads(1)
    source = [{"image": photograph(seed), "label": 0} for seed in range(options.images)]

    def over_all(function):
        def run():
            random = np.random.default_rng(0)
            for example in source:
                function(example, random)

        return run

    stages = {
        "decode": lambda example, random: decode(example["image"]),
        "decode, crop, flip": transform(""),
        **{f"decode, crop, flip, {policy}": transform(policy) for policy in POLICIES},
    }
    seconds = interleaved({name: over_all(function) for name, function in stages.items()}, options.runs)
    # Time of the processor, not of the clock: what else runs on the machine then counts for little.
    one_core = {name: options.images / processor_seconds(over_all(function)) for name, function in stages.items()}
    streamed = {
        f"{policy or 'no policy'}, {workers} worker{'s' * (workers > 1)}": through_stream(
            source, policy, workers, options.batches
        )
        for policy in ("", "randaugment")
        for workers in (1, 2)
    }
    for name, rate in {**one_core, **streamed}.items():
        print(f"{name:36} {rate:7.0f} images/s")
    measured = {
        "images": dict(
            kind="synthetic, amplitude falls as 1 / frequency",
            number=options.images,
            pixels=[HEIGHT, WIDTH],
            mean_bytes=float(np.mean([len(example["image"]) for example in source])),
        ),
        "size": SIZE,
        "images a second of one core's time": one_core,
        "seconds for all images, one after another": seconds,
        "stream, images a second": streamed,
        "cores that feed an accelerator": "its images a second / (images a second of one core's time)",
        "load when it began": os.getloadavg()[0],
        "libraries": {
            name: importlib.metadata.version(name) for name in ("opencv-python-headless", "pillow", "grain", "numpy")
        },
    }
    print("written to", record("decoding", measured))


if __name__ == "__main__":
    main()
