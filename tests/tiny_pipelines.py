"""Real diffusers pipelines at tiny size: random weights, and text encoders and tokenizers made on the spot.

Prompts are text, except where a comment says why not. A pipeline has a VAE only where it reads a picture or is to
decode one; without one, diffusers takes latents to be an eighth of the picture.
"""

from __future__ import annotations

import copy
import functools
import inspect
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = "a an the of in on at with and striped purple lion wearing crown pink ground red blue ugly blurry"
SPECIAL = (
    "<pad>",
    "</s>",
    "<unk>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|end_header_id|>",
)
LENGTH = 12  # of a text stream that is padded to a fixed length

PROMPT, OTHER = "a striped purple lion", "the pink crown of an ugly blue lion"
NEGATIVE = "blurry red ground"
Call = dict[str, Any]


# ---------------------------------------------------------------- parts


def tokenizer(length: int = 64, side: str = "right") -> transformers.PreTrainedTokenizerFast:
    """One token per word, then the end; a chat template that adds nothing."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*SPECIAL, *WORDS.split()))}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[3:]),
        model_max_length=length,
        padding_side=side,
    )
    made.chat_template = (
        "{% for message in messages %}{% set said = message['content'] %}"
        "{{ said if said is string else said[0]['text'] }} {% endfor %}"
    )
    made.image_token, made.video_token = "<|image_pad|>", "<|video_pad|>"
    return made


VOCABULARY = {"vocab_size": len(SPECIAL) + len(WORDS.split()), "pad_token_id": 0, "eos_token_id": 1}


def t5(width: int = 16, kind: str = "T5") -> Any:
    config = getattr(transformers, f"{kind}Config")(
        **VOCABULARY, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return getattr(transformers, f"{kind}EncoderModel")(config).eval()


def clip(width: int = 16, length: int = LENGTH, projection: int | None = None) -> Any:
    config = transformers.CLIPTextConfig(
        **VOCABULARY,
        bos_token_id=1,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=projection or width,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config).eval()


DECODER = {
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.5,  # or words differ by little where no norm comes after the embedding
}


def decoder(config: str, model: str, width: int = 16, **more: Any) -> Any:
    """A language model of the Llama kind, by the names of its classes in transformers."""
    made = getattr(transformers, config)(**{**VOCABULARY, **DECODER, "hidden_size": width, "bos_token_id": 1, **more})
    return getattr(transformers, model)(made).eval()


def qwen_vl() -> Any:
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**VOCABULARY, "bos_token_id": 1, **DECODER, "hidden_size": 16, "rope_parameters": rope},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [0],
        },
        **{f"{name}_token_id": SPECIAL.index(f"<|{token}|>") for name, token in _VISION},
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


_VISION = (("vision_start",) * 2, ("vision_end",) * 2, ("image", "image_pad"), ("video", "video_pad"))


def qwen3_vl(kind: str, layers: int = 2) -> Any:
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    text = {**VOCABULARY, **DECODER, "hidden_size": 8, "bos_token_id": 1, "rope_parameters": rope}
    config = transformers.Qwen3VLConfig(
        text_config={**text, "num_hidden_layers": layers},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 8,
            "deepstack_visual_indexes": [0],
        },
    )
    return getattr(transformers, kind)(config).eval()


def image_vae(channels: int) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=2,
        mid_block_add_attention=False,
        shift_factor=0.0,
    ).eval()


def transformer(family: str, **changed: Any) -> Any:
    tiny = FAMILIES[family]
    return replace(tiny, config={**tiny.config, **changed}).make()


def picture(size: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def flow(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


# ---------------------------------------------------------------- pipelines


def sd3(kind: str = "StableDiffusion3Pipeline") -> Any:
    return getattr(diffusers, kind)(
        transformer=transformer("SD3", pooled_projection_dim=16),
        scheduler=flow(),
        vae=image_vae(4),
        text_encoder=clip(8, projection=8),
        tokenizer=tokenizer(LENGTH),
        text_encoder_2=clip(8, projection=8),
        tokenizer_2=tokenizer(LENGTH),
        text_encoder_3=t5(16),
        tokenizer_3=tokenizer(),
    )


def flux(kind: str = "FluxPipeline", vae: Any = None) -> Any:
    return getattr(diffusers, kind)(
        transformer=transformer("Flux"),
        scheduler=flow(),
        vae=vae,
        text_encoder=clip(),
        tokenizer=tokenizer(LENGTH),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
    )


def flux_kontext() -> Any:
    return flux("FluxKontextPipeline", image_vae(1))


def flux2_klein() -> Any:
    return diffusers.Flux2KleinPipeline(
        transformer=transformer("Flux2", guidance_embeds=False),
        scheduler=flow(),
        vae=diffusers.AutoencoderKLFlux2(  # never decodes here, but its statistics shift the latents
            block_out_channels=(4,),
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            layers_per_block=1,
            latent_channels=1,
            norm_num_groups=1,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval(),
        text_encoder=decoder("Qwen3Config", "Qwen3ForCausalLM"),
        tokenizer=tokenizer(),
    )


def qwen_image() -> Any:
    pipe = diffusers.QwenImagePipeline(
        transformer=transformer("QwenImage"), scheduler=flow(), vae=None, text_encoder=qwen_vl(), tokenizer=tokenizer()
    )
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "{}", 0
    return pipe


class Processor(transformers.Qwen2VLProcessor):  # type: ignore[misc]
    """Without the check of its parts, which loads the video processor, which needs torchvision."""

    def check_argument_for_proper_class(self, *_: Any) -> None:
        pass


def qwen_image_edit() -> Any:
    words = tokenizer()
    pipe = diffusers.QwenImageEditPipeline(
        transformer=transformer("QwenImage"),
        scheduler=flow(),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=2,
            z_dim=4,
            dim_mult=[1, 1, 1, 1, 1, 1],
            num_res_blocks=0,
            temperal_downsample=[False] * 5,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ).eval(),
        text_encoder=qwen_vl(),
        tokenizer=words,
        processor=Processor(
            image_processor=transformers.Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 3136}),
            tokenizer=words,
            video_processor=None,
        ),
    )
    pipe.prompt_template_encode = "<|vision_start|> <|image_pad|> <|vision_end|> {}"
    pipe.prompt_template_encode_start_idx = 0
    return pipe


def cogvideox(kind: str = "CogVideoXPipeline", vae: Any = None, channels: int = 4) -> Any:
    return getattr(diffusers, kind)(
        transformer=transformer("CogVideoX", in_channels=channels, max_text_seq_length=LENGTH),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
        vae=vae,
        text_encoder=t5(),
        tokenizer=tokenizer(),
    )


def cogvideox_from_image() -> Any:
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    ).eval()
    return cogvideox("CogVideoXImageToVideoPipeline", vae, 8)


def hunyuan_video() -> Any:
    return diffusers.HunyuanVideoPipeline(
        transformer=transformer("HunyuanVideo"),
        scheduler=flow(),
        vae=None,
        text_encoder=decoder("LlamaConfig", "LlamaModel"),
        tokenizer=tokenizer(),
        text_encoder_2=clip(8, 77),
        tokenizer_2=tokenizer(),
    )


def mochi() -> Any:
    return diffusers.MochiPipeline(
        transformer=transformer("Mochi", max_sequence_length=LENGTH),
        scheduler=flow(invert_sigmas=True),
        vae=None,
        text_encoder=t5(),
        tokenizer=tokenizer(),
    )


def z_image() -> Any:
    return diffusers.ZImagePipeline(
        transformer=transformer("ZImage"),
        scheduler=flow(),
        vae=None,
        text_encoder=decoder("Qwen3Config", "Qwen3Model"),
        tokenizer=tokenizer(),
    )


def lumina2() -> Any:
    return diffusers.Lumina2Pipeline(
        transformer=transformer("Lumina2"),
        scheduler=flow(),
        vae=None,
        text_encoder=decoder("Gemma2Config", "Gemma2Model"),
        tokenizer=tokenizer(),
    )


def hidream() -> Any:
    pipe = diffusers.HiDreamImagePipeline(
        transformer=transformer("HiDream"),
        scheduler=flow(),
        vae=None,
        text_encoder=clip(8, projection=4),
        tokenizer=tokenizer(),
        text_encoder_2=clip(8, projection=4),
        tokenizer_2=tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=tokenizer(),
        text_encoder_4=decoder("LlamaConfig", "LlamaForCausalLM", 12, attn_implementation="eager"),
        tokenizer_4=tokenizer(),
    )
    pipe.default_sample_size = 8  # every picture is scaled to this area
    return pipe


def aura_flow() -> Any:
    return diffusers.AuraFlowPipeline(
        transformer=transformer("AuraFlow"),
        scheduler=flow(),
        vae=None,
        text_encoder=t5(kind="UMT5"),
        tokenizer=tokenizer(),
    )


def chroma() -> Any:
    return diffusers.ChromaPipeline(
        transformer=transformer("Chroma"), scheduler=flow(), vae=None, text_encoder=t5(), tokenizer=tokenizer()
    )


def sd3_from_image() -> Any:
    return sd3("StableDiffusion3Img2ImgPipeline")


def hunyuan_video_from_image() -> Any:
    llava = transformers.LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        text_config={"model_type": "llama", **VOCABULARY, **DECODER, "hidden_size": 16, "bos_token_id": 1},
        image_token_index=SPECIAL.index("<|image_pad|>"),
        pad_token_id=0,
    )
    return diffusers.HunyuanVideoImageToVideoPipeline(
        transformer=transformer("HunyuanVideo, image to video"),
        scheduler=flow(),
        vae=diffusers.AutoencoderKLHunyuanVideo(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("HunyuanVideoDownBlock3D",) * 4,
            up_block_types=("HunyuanVideoUpBlock3D",) * 4,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        ).eval(),
        text_encoder=transformers.LlavaForConditionalGeneration(llava).eval(),
        tokenizer=tokenizer(),
        text_encoder_2=clip(8, 77),
        tokenizer_2=tokenizer(),
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
    )


def hunyuan_image(guider: Any = None) -> Any:
    pipe = diffusers.HunyuanImagePipeline(
        transformer=transformer("HunyuanImage"),
        scheduler=flow(),
        vae=None,
        text_encoder=qwen_vl(),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
        guider=guider,
    )
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = LENGTH, 4
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "{}", 0
    return pipe


def hunyuan_image_guided() -> Any:
    return hunyuan_image(diffusers.guiders.AdaptiveProjectedMixGuidance())


def cogview3() -> Any:
    return diffusers.CogView3PlusPipeline(
        transformer=transformer("CogView3Plus"),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
        vae=None,
        text_encoder=t5(),
        tokenizer=tokenizer(),
    )


def cogview4() -> Any:
    return diffusers.CogView4Pipeline(
        transformer=transformer("CogView4"),
        scheduler=flow(),
        vae=None,
        text_encoder=decoder("GlmConfig", "GlmModel"),
        tokenizer=tokenizer(side="left"),
    )


def longcat() -> Any:
    pipe = diffusers.LongCatImagePipeline(
        transformer=transformer("LongCatImage", in_channels=64),
        scheduler=flow(),
        vae=None,
        text_encoder=qwen_vl(),
        tokenizer=tokenizer(),
        text_processor=None,  # only to rewrite prompts
    )
    pipe.tokenizer_max_length = LENGTH
    pipe.prompt_template_encode_prefix, pipe.prompt_template_encode_suffix = "an", "of"
    return pipe


def ovis() -> Any:
    pipe = diffusers.OvisImagePipeline(
        transformer=transformer("OvisImage"),
        scheduler=flow(),
        vae=None,
        text_encoder=decoder("Qwen3Config", "Qwen3Model"),
        tokenizer=tokenizer(),
    )
    pipe.system_prompt, pipe.user_prompt_begin_id = "", 0
    return pipe


def bria() -> Any:
    return diffusers.BriaPipeline(
        transformer=transformer("Bria"), scheduler=flow(), vae=image_vae(1), text_encoder=t5(), tokenizer=tokenizer()
    )


def krea2() -> Any:
    pipe = diffusers.Krea2Pipeline(
        transformer=transformer("Krea2"),
        scheduler=flow(),
        vae=None,
        text_encoder=qwen3_vl("Qwen3VLModel"),
        tokenizer=tokenizer(),
        text_encoder_select_layers=(0, 1, 2),
    )
    pipe.prompt_template_encode_prefix, pipe.prompt_template_encode_start_idx = "", 0
    pipe.prompt_template_encode_suffix, pipe.prompt_template_encode_num_suffix_tokens = "of", 2
    return pipe


def hunyuan_video15(**guider: Any) -> Any:
    text = qwen_vl().model.language_model
    pipe = diffusers.HunyuanVideo15Pipeline(
        transformer=transformer("HunyuanVideo1.5", in_channels=9),  # latents, a first frame, and where there is one
        scheduler=flow(),
        vae=diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=4,
            block_out_channels=(8, 8),
            layers_per_block=1,
            spatial_compression_ratio=4,
            temporal_compression_ratio=2,
            downsample_match_channel=False,
            upsample_match_channel=False,
        ).eval(),
        text_encoder=text,
        tokenizer=tokenizer(),
        text_encoder_2=t5(8),
        tokenizer_2=tokenizer(),
        guider=diffusers.guiders.ClassifierFreeGuidance(**guider),
    )
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = LENGTH, 4, 3
    pipe.system_message, pipe.prompt_template_encode_start_idx = "", 0
    return pipe


def hunyuan_video15_unguided() -> Any:
    return hunyuan_video15(enabled=False)


def ernie() -> Any:
    return diffusers.ErnieImagePipeline(
        transformer=transformer("ErnieImage"),
        scheduler=flow(),
        vae=None,
        text_encoder=decoder("MistralConfig", "MistralModel", 12, head_dim=6),
        tokenizer=tokenizer(),
    )


def fibo() -> Any:
    return diffusers.BriaFiboPipeline(
        transformer=transformer("BriaFibo", text_encoder_dim=8),
        scheduler=flow(),
        vae=None,
        text_encoder=decoder("SmolLM3Config", "SmolLM3ForCausalLM", 8),
        tokenizer=tokenizer(),
    )


def nucleus() -> Any:
    pipe = diffusers.NucleusMoEImagePipeline(
        transformer=transformer("NucleusMoE", joint_attention_dim=8),
        scheduler=flow(),
        vae=None,
        text_encoder=qwen3_vl("Qwen3VLForConditionalGeneration"),
        processor=tokenizer(),  # no picture is read
    )
    pipe.default_return_index = -2
    return pipe


def ideogram4() -> Any:
    width = 13 * 8  # as many layers of the text encoder, the last being the 36th
    return diffusers.Ideogram4Pipeline(
        transformer=transformer("Ideogram4", llm_features_dim=width),
        unconditional_transformer=transformer("Ideogram4", llm_features_dim=width),
        scheduler=flow(),
        vae=None,
        text_encoder=qwen3_vl("Qwen3VLModel", 36),
        tokenizer=tokenizer(),
    )


# ---------------------------------------------------------------- how they are called


@dataclass(frozen=True)
class Case:
    """One pipeline at tiny size.

    `blocks`: its joint blocks; `call`: arguments beside prompt and generator, with guidance off; `guided`: what turns
    guidance on, None where the pipeline has none; `scheme`: how its calls hold the branches then, "uncond_cond" and
    "cond_uncond" in one call, or "two calls", cond first; `many`: whether several pictures per prompt can be had;
    `always`: guidance cannot be turned off; `guided_lists`: whether guidance takes several prompts.
    """

    make: Callable[[], Any]
    blocks: int
    scheme: Literal["uncond_cond", "cond_uncond", "two calls"] | None
    call: Call
    guided: Call | None = field(default_factory=lambda: {"guidance_scale": 3.0, "negative_prompt": NEGATIVE})
    many: bool = True
    always: bool = False
    guided_lists: bool = True

    @property
    def modes(self) -> tuple[bool, ...]:
        """Guidance off and on, as far as the pipeline has them."""
        return (False,) if self.guided is None else (True,) if self.always else (False, True)

    def pipe(self) -> Any:
        return copy.deepcopy(_made(self.make))

    def arguments(self, *prompts: str, guided: bool = False, images: int = 1, seed: int = 0) -> Call:
        """One call's arguments. Each picture has its own noise, so that a batch can be held against single calls."""
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts) * images)]
        call = {"num_inference_steps": 2, "output_type": "latent", "generator": generators, **self.call}
        call["prompt"] = list(prompts) if len(prompts) > 1 else prompts[0]
        if guided:
            call |= self.guided or {}
        for name in ("negative_prompt", "negative_prompt_embeds", "image"):
            if name in call and len(prompts) > 1:
                value = call[name]
                call[name] = value.repeat(len(prompts), 1, 1) if isinstance(value, Tensor) else [value] * len(prompts)
        if images > 1:
            call["num_videos_per_prompt" if "num_frames" in call else "num_images_per_prompt"] = images
        return call


@functools.cache
def _made(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, call: Call) -> Tensor:
    """The same call draws the same picture again: what a pipeline would use up, it gets a copy of."""
    call = {k: [_unused(v) for v in value] if isinstance(value, list) else value for k, value in call.items()}
    output = pipe(**call, return_dict=False)[0]
    return output if isinstance(output, Tensor) else torch.as_tensor(np.stack([np.asarray(o) for o in output]))


def _unused(value: Any) -> Any:
    if not isinstance(value, torch.Generator):
        return value
    fresh = torch.Generator()
    fresh.set_state(value.get_state())
    return fresh


SIZE = {"height": 64, "width": 64}
SHORT = {**SIZE, "max_sequence_length": LENGTH}
OFF = {"guidance_scale": 1.0}
TRUE = {"true_cfg_scale": 3.0, "negative_prompt": NEGATIVE}

PIPELINES: dict[str, Case] = {
    "SD3": Case(
        sd3, 3, "uncond_cond", {"height": 16, "width": 16, "max_sequence_length": LENGTH, "output_type": "pt", **OFF}
    ),
    "Flux": Case(flux, 4, "two calls", SHORT, TRUE),
    "FluxKontext": Case(
        flux_kontext,
        4,
        "two calls",
        {
            "height": 16,
            "width": 16,
            "max_sequence_length": LENGTH,
            "image": picture(16),
            "max_area": 256,
            "_auto_resize": False,
            "output_type": "pt",
        },
        TRUE,
    ),
    "Flux2Klein": Case(
        flux2_klein,
        3,
        "two calls",
        {"height": 8, "width": 8, "max_sequence_length": LENGTH, "text_encoder_out_layers": (1,), **OFF},
        # it takes no negative prompt as text
        {"guidance_scale": 3.0, "negative_prompt_embeds": torch.ones(1, LENGTH, 16)},
    ),
    "QwenImage": Case(qwen_image, 2, "two calls", SIZE, TRUE),
    "QwenImageEdit": Case(  # its text encoder sees one picture at this size, but several as they are
        qwen_image_edit, 2, "two calls", {"height": 128, "width": 128, "image": picture(1024)}, TRUE
    ),
    "CogVideoX": Case(cogvideox, 2, "uncond_cond", {**SHORT, **OFF, "num_frames": 5}, many=False),
    "CogVideoX, from an image": Case(
        cogvideox_from_image,
        2,
        "uncond_cond",
        {
            "height": 16,
            "width": 16,
            "max_sequence_length": LENGTH,
            **OFF,
            "num_frames": 5,
            "image": picture(16),
            "output_type": "pt",
        },
        many=False,
    ),
    "HunyuanVideo": Case(
        hunyuan_video,
        4,
        "two calls",
        {**SHORT, "num_frames": 5, "prompt_template": {"template": "{}", "crop_start": 0}},
        TRUE,
    ),
    "Mochi": Case(mochi, 2, "uncond_cond", {**SHORT, **OFF, "num_frames": 7}),
    "ZImage": Case(z_image, 2, "cond_uncond", {**SHORT, "guidance_scale": 0.0}),
    "Lumina2": Case(lumina2, 2, "two calls", {**SHORT, **OFF, "system_prompt": "a"}),
    "HiDream": Case(hidream, 3, "uncond_cond", {**SHORT, **OFF}),
    "AuraFlow": Case(aura_flow, 3, "uncond_cond", {**SHORT, **OFF}),
    "Chroma": Case(chroma, 4, "two calls", {**SHORT, **OFF}),
    "SD3, from an image": Case(
        sd3_from_image,
        3,
        "uncond_cond",
        {
            "height": 16,
            "width": 16,
            "max_sequence_length": LENGTH,
            **OFF,
            "image": picture(16),
            "num_inference_steps": 4,
            "strength": 0.5,
        },
    ),
    "HunyuanVideo, from an image": Case(
        hunyuan_video_from_image,
        4,
        "two calls",
        {
            "height": 32,
            "width": 32,
            "max_sequence_length": 20,
            "num_frames": 5,
            "image": picture(32),
            "prompt_template": {
                "template": "<|image_pad|> <|end_header_id|> {} <|end_header_id|> a a a <|end_header_id|>",
                "crop_start": 1,
                "image_emb_len": 4,
                "image_emb_start": 0,
                "image_emb_end": 4,
            },
        },
        TRUE,
        many=False,
        guided_lists=False,  # its negative prompts come with one black picture
    ),
    "HunyuanImage": Case(hunyuan_image, 4, None, {"height": 128, "width": 128}, None),
    "HunyuanImage, with a guider": Case(
        hunyuan_image_guided,
        4,
        "two calls",
        {"height": 128, "width": 128},
        {"negative_prompt": NEGATIVE},
        always=True,
    ),
    "HunyuanVideo1.5": Case(
        hunyuan_video15_unguided, 2, None, {"height": 16, "width": 16, "num_frames": 1}, None, many=False
    ),
    "HunyuanVideo1.5, with a guider": Case(
        hunyuan_video15,
        2,
        "two calls",
        {"height": 16, "width": 16, "num_frames": 1},
        {"negative_prompt": NEGATIVE},
        many=False,
        always=True,
    ),
    "CogView3Plus": Case(cogview3, 2, "uncond_cond", {**SHORT, **OFF}),
    "CogView4": Case(cogview4, 2, "two calls", {**SHORT, **OFF}),
    "LongCatImage": Case(longcat, 4, "two calls", {**SIZE, **OFF, "enable_prompt_rewrite": False}),
    "OvisImage": Case(ovis, 4, "two calls", {**SHORT, **OFF}),
    "Bria": Case(bria, 4, "uncond_cond", {"height": 16, "width": 16, "max_sequence_length": LENGTH, **OFF}),
    "BriaFibo": Case(fibo, 4, "uncond_cond", {**SHORT, **OFF}),
    "ErnieImage": Case(ernie, 2, "uncond_cond", {**SIZE, **OFF}),
    "NucleusMoE": Case(nucleus, 2, "two calls", {**SIZE, **OFF}),
    "Ideogram4": Case(ideogram4, 2, None, {**SHORT, "guidance_schedule": [3.0, 3.0]}, None),
    "Krea2": Case(krea2, 2, "two calls", {**SHORT, "guidance_scale": 0.0}),
}


# ---------------------------------------------------------------- which rows are conditional


def branches(pipe: Any, call: Call) -> list[list[str]]:
    """Which rows of each transformer call come of the prompt ("cond") and which of the negative prompt ("uncond").

    Nothing is known of the pipeline but what it is given: the call is run again with another prompt, then with
    another negative prompt, and the rows of text that moved with one are its own.

    Raises:
        AssertionError: a row moved with both, or with neither.
    """
    before = _texts(pipe, call)
    moved = []
    for names in (("prompt", "prompt_embeds"), ("negative_prompt", "negative_prompt_embeds")):
        changed = {name: _other(call[name]) for name in names if call.get(name) is not None}
        after = _texts(pipe, {**call, **changed})
        assert [len(rows) for rows in before] == [len(rows) for rows in after]
        moved.append([[_differ(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)])
    found = []
    for cond_rows, uncond_rows in zip(*moved, strict=True):
        assert all(c != u for c, u in zip(cond_rows, uncond_rows, strict=True)), "a row of both branches or of none"
        found.append(["cond" if c else "uncond" for c in cond_rows])
    return found


def _other(value: Any) -> Any:
    """Another prompt with as many tokens."""
    if isinstance(value, str):
        return " ".join(reversed(value.split()))
    return [_other(v) for v in value] if isinstance(value, list) else value + 1


def _differ(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or not torch.equal(a, b)


_TEXT = ("encoder_hidden_states", "encoder_hidden_states_t5", "cap_feats", "text_bth")


def _texts(pipe: Any, call: Call) -> list[list[Tensor]]:
    """The rows of text that each transformer call is given."""
    signature = inspect.signature(type(pipe.transformer).forward)
    name = next(name for name in _TEXT if name in signature.parameters)
    seen: list[list[Tensor]] = []

    def spy(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(list(signature.bind(module, *args, **kwargs).arguments[name]))

    hook = pipe.transformer.register_forward_pre_hook(spy, with_kwargs=True)
    try:
        draw(pipe, call)
    finally:
        hook.remove()
    return seen
