"""The twin of test/support/cog-twin.ts for Cog's own server: same inputs, same behaviour. No ComfyUI behind it."""
import base64
import json
import os
import sys
import tempfile
import urllib.request
from typing import AsyncIterator, Iterator, List, Optional

import cog
from cog import BasePredictor, Input, Path

PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def setup() -> None:
    print("Loading the model")
    url = os.environ.get("TWIN_SETUP_URL")
    if url:
        urllib.request.urlopen(url).read()


def pictures(workflow_json, input_file, output_format):
    print("Checking weights")
    print("checking on stderr", file=sys.stderr)
    if input_file is not None:
        print("input_file", os.path.basename(str(input_file)), os.path.getsize(str(input_file)))
    nodes = json.loads(workflow_json)
    for node_id, node in nodes.items():
        name = node.get("inputs", {}).get("ckpt_name")
        if name is not None:
            raise ValueError(
                "1 weight is missing\n"
                f"  node {node_id} {node['class_type']} ckpt_name: {name}\n"
                "  not found in models/checkpoints"
            )
    image = next((n for n in nodes.values() if n["class_type"] == "EmptyImage"), {})
    folder = tempfile.mkdtemp()
    for index in range(int(image.get("inputs", {}).get("batch_size", 1))):
        path = os.path.join(folder, f"ComfyUI_{index + 1:05}_.{output_format}")
        with open(path, "wb") as file:
            file.write(PICTURE)
        yield Path(path)
    print("Executed")


class Predictor(BasePredictor):
    def setup(self) -> None:
        setup()

    def predict(
        self,
        workflow_json: str = Input(default="", description="Your ComfyUI workflow as JSON."),
        input_file: Optional[Path] = Input(default=None, description="Input file."),
        return_temp_files: bool = Input(default=False, description="Temporary files."),
        output_format: str = Input(default="webp", choices=["webp", "jpg", "png"], description="Format."),
        output_quality: int = Input(default=95, ge=0, le=100, description="Quality."),
        randomise_seeds: bool = Input(default=True, description="Seeds."),
        force_reset_cache: bool = Input(default=False, description="Cache."),
        skip_weight_check: bool = Input(default=False, description="Check."),
        download_missing_weights: bool = Input(default=False, description="Download."),
    ) -> List[Path]:
        return list(pictures(workflow_json, input_file, output_format))


class StreamingPredictor(BasePredictor):
    def setup(self) -> None:
        setup()

    @cog.streaming
    def predict(
        self,
        workflow_json: str = Input(default="", description="Your ComfyUI workflow as JSON."),
        input_file: Optional[Path] = Input(default=None, description="Input file."),
        return_temp_files: bool = Input(default=False, description="Temporary files."),
        output_format: str = Input(default="webp", choices=["webp", "jpg", "png"], description="Format."),
        output_quality: int = Input(default=95, ge=0, le=100, description="Quality."),
        randomise_seeds: bool = Input(default=True, description="Seeds."),
        force_reset_cache: bool = Input(default=False, description="Cache."),
        skip_weight_check: bool = Input(default=False, description="Check."),
        download_missing_weights: bool = Input(default=False, description="Download."),
    ) -> Iterator[Path]:
        yield from pictures(workflow_json, input_file, output_format)


class AsyncPredictor(BasePredictor):
    async def setup(self) -> None:
        setup()

    async def predict(
        self,
        workflow_json: str = Input(default="", description="Your ComfyUI workflow as JSON."),
        input_file: Optional[Path] = Input(default=None, description="Input file."),
        return_temp_files: bool = Input(default=False, description="Temporary files."),
        output_format: str = Input(default="webp", choices=["webp", "jpg", "png"], description="Format."),
        output_quality: int = Input(default=95, ge=0, le=100, description="Quality."),
        randomise_seeds: bool = Input(default=True, description="Seeds."),
        force_reset_cache: bool = Input(default=False, description="Cache."),
        skip_weight_check: bool = Input(default=False, description="Check."),
        download_missing_weights: bool = Input(default=False, description="Download."),
    ) -> List[Path]:
        return list(pictures(workflow_json, input_file, output_format))


class TrivialPredictor(BasePredictor):
    """For benches: does nothing, at once."""

    def predict(self, workflow_json: str = Input(default="")) -> List[str]:
        return ["done"]


class AsyncTrivialPredictor(BasePredictor):
    """For benches: as TrivialPredictor with many slots; waits to be cancelled when told to."""

    async def predict(self, workflow_json: str = Input(default="")) -> List[str]:
        if workflow_json == "wait":
            import asyncio

            await asyncio.sleep(60)
        return ["done"]
