"""The inputs, for the cog CLI, which reads this file and never runs it. Generated: bun scripts/signature.ts."""

from typing import List, Optional

from cog import BasePredictor, Input, Path, Secret


class Predictor(BasePredictor):
    async def run(
        self,
        workflow_json: str = Input(
            description="Your ComfyUI workflow: JSON text or a URL to it, in API or UI format, or the word input_file when the uploaded file is the workflow. Empty: the preloaded workflow, else an example.",
            default="",
        ),
        input_file: Optional[Path] = Input(
            description="An image, a video, a sound, or a tar or zip of several: files that the workflow loads.",
            default=None,
        ),
        return_temp_files: bool = Input(
            description="Also return temporary files, such as previews. Useful for debugging.",
            default=False,
        ),
        output_format: str = Input(
            description="Format of the output images.",
            default="webp",
            choices=["webp", "jpg", "png"],
        ),
        output_quality: int = Input(
            description="Quality of the output images, from 0 to 100. 100 is best, 0 is lowest. PNG loses nothing at any quality.",
            default=95,
            ge=0,
            le=100,
        ),
        randomise_seeds: bool = Input(
            description="Give every seed (seed, noise_seed, rand_seed) a random value.",
            default=True,
        ),
        force_reset_cache: bool = Input(
            description="Make every node run again, whatever ComfyUI remembers of earlier runs.",
            default=False,
        ),
        skip_weight_check: bool = Input(
            description="Not recommended: run without checking that the weights are there. ComfyUI then fails on its own, later.",
            default=False,
        ),
        download_missing_weights: bool = Input(
            description="Download missing weights during this prediction instead of failing at once. Refused where the operator forbids it.",
            default=False,
        ),
        overrides: str = Input(
            description='Values to set in the workflow, as a JSON object: {"6.text": "a cat", "KSampler.seed": 7}, by node id, title or class.',
            default="",
        ),
        hf_api_token: Secret = Input(
            description="Hugging Face token, used for the downloads of this prediction only.",
            default="",
        ),
        civitai_api_token: Secret = Input(
            description="Civitai token, used for the downloads of this prediction only.",
            default="",
        ),
    ) -> List[Path]:
        raise NotImplementedError("the server is predict.ts; cog/server/http.py starts it")
