"""What is known about each joint-attention model, as data: which block class carries the text, and where.

A new model is a new row; no other file asks what model it has. Names, not classes, so that nothing heavy is imported
and a row may describe a class that the installed diffusers does not have. Source: the sources of diffusers 0.42.1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Segment:
    """One run of positions of the text stream, as the pipeline's `encode_prompt` lays it out.

    `tokenizers` holds (tokenizer attribute, prompt argument) pairs that share the positions, their states being
    concatenated on channels, as far as the pipeline has these tokenizers; `encoder` is the pipeline attribute without
    which the segment is zeros, empty where it is never left out; `length` names the `encode_prompt` argument or
    pipeline attribute that says how many positions the segment has, empty where it is all of the text stream.
    """

    tokenizers: tuple[tuple[str, str], ...]
    encoder: str = ""
    length: str = ""


@dataclass(frozen=True)
class Run:
    """One run of positions of the text stream, filled by one text encoder, whose token ids are heard as it encodes."""

    encoder: str = "text_encoder"
    """Attribute of the pipeline, dotted, with the module that is given the token ids."""
    tokenizer: str = "tokenizer"
    """Attribute of the pipeline with what turns token ids back to text, or a processor that holds it."""
    prompt: str = "prompt"
    """Argument of `encode_prompt` with the words."""
    front: int | str = 0
    """How many first tokens do not reach the stream, or what says so: an argument of `encode_prompt`, an entry of its
    `prompt_template`, or an attribute of the pipeline, which is a number or the text that they stand for."""
    back: int | str = 0
    """The same for the last tokens."""
    trimmed: bool = False
    """Whether padding is taken away as well, so that the first token of each sample is the first of the stream."""
    padding: int | None = None
    """Id of the padding; the tokenizer's when None."""
    skipped: str | None = None
    """Attribute of the pipeline with the id of image tokens that are no part of the text."""


@dataclass(frozen=True)
class Family:
    """One list of joint blocks, or with `cross` of blocks that cross-attend, in one transformer class."""

    model: str
    """Class name of the transformer."""
    blocks: str
    """Attribute that holds the ModuleList. A dot leads on, and a star stands for each of a list; those without such an
    attribute are passed over."""
    block: str | tuple[str, ...]
    """Class name of its blocks, or the names that may stand there."""
    layout: Literal["dual", "packed"]
    """dual: the text is an argument of its own; packed: it is a span of the block's only sequence."""
    text: str
    """Block argument that carries the text stream, or the sequence that holds it."""
    span: Literal["first", "last"] = "first"
    """Where the text is in a packed sequence, and in a mask over both streams."""
    scattered: str | None = None
    """The function of `spans` that says where the text is, when it is no one span."""
    token_dim: Literal[0, 1] = 1
    """Dimension of the stream that counts tokens; with 0, samples are on dimension 1, or there is one sample only and
    the stream is `[L, D]`."""
    returns: Literal[0, 1] | None = None
    """Where the stream of `text` is in the block's return; None when the block returns one tensor: of a packed block
    the sequence, of a dual one the image without the text."""
    mask: str | None = None
    """Block argument with the mask of valid tokens, true or not 0 where valid: `[B, L]`, or `[B, S]` or `[B, 1, 1, S]`
    over text and image; a dot leads into a dict. None when the model attends to padding."""
    additive: bool = False
    """Whether that mask is added to the logits: 0 where valid, far below elsewhere."""
    cross: bool = False
    """Whether the blocks cross-attend to the text and hand none on. Lifted on request only; `layout` and `span` then
    speak of the argument `text`, which may hold image tokens too."""
    registers: int = 0
    """Learned tokens in front of the text that no prompt has made."""
    leading: str | None = None
    """Transformer argument with image tokens that stand in front of the text, counted on dimension 1."""
    spared: str | None = None
    """Entry of the transformer's config with the number of last blocks that get no text."""
    batch: Literal["uncond_cond", "cond_uncond", "separate", "cond", "unknown"] = "unknown"
    """How the pipelines bring the branches of classifier-free guidance: as halves of one batch, in this order; in a
    call each, the conditional one first; or never the unconditional one."""
    model_text: str = "encoder_hidden_states"
    """Transformer argument that carries the text."""
    length: tuple[tuple[str, int, int], ...] = ()
    """Of packed layouts: transformer arguments, dimensions and times, whose sizes add up to the length of the text;
    `model_text` on dimension 1 when empty."""
    model_timestep: str = "timestep"
    """Transformer argument that carries the scheduler's timestep."""
    timestep_scale: float | None = 1.0
    """What that argument is multiplied by to get the scheduler's timestep; None when that is not known."""
    cached: str | None = None
    """Transformer argument that is not None where the text's keys and values are kept from one step for the next, which
    leaves nothing for start and stop to decide."""
    timestep_zero: float = 0.0
    """The scheduler's timestep where the transformer is told 0."""
    segments: tuple[Segment, ...] = ()
    """How the prompt becomes positions, where it can be told without running the text encoders."""
    runs: tuple[Run, ...] = ()
    """How it does where the text encoders have to be heard; without either, tokens cannot be chosen by words."""
    wordless: str = "its row names no text encoders"
    """Why there are neither."""
    uncond_first: bool = False
    """Whether `encode_prompt` has the negative prompts encoded before the prompts."""
    parallel: bool = False
    """Whether diffusers' context parallelism is known to give the blocks of each process their part of the text."""
    note: str = ""
    """What a user should know; shown by `rarelift.inspect`."""

    @property
    def words_known(self) -> bool:
        """Whether the tokens that take part can be chosen by words."""
        return bool(self.segments or self.runs)

    @property
    def hands_on(self) -> bool:
        """Whether a block hands the text on to the next, updated."""
        return not self.cross and (self.layout == "packed" or self.returns is not None)

    @property
    def block_names(self) -> tuple[str, ...]:
        return (self.block,) if isinstance(self.block, str) else self.block

    @property
    def kind(self) -> str:
        """What the blocks do, for messages."""
        return "cross-attention" if self.cross else "joint"


ONE_CALL = ("uncond_cond", "cond_uncond")
"""`Family.batch` where both branches of guidance come in one batch."""
FAMILIES: dict[str, tuple[Family, ...]] = {}
"""Model class name to its lists of joint blocks."""
CROSS_FAMILIES: dict[str, tuple[Family, ...]] = {}
"""Model class name to its lists of blocks that cross-attend to the text."""


def register(family: Family) -> None:
    """Make a list of blocks known; a row for the same model and list is replaced.

    Raises:
        ValueError: a value of the row is not one that is known, or the row is for a model known not to be joint, or
            with `cross` for one known to be.
    """
    for name, value, accepted in (
        ("layout", family.layout, ("dual", "packed")),
        ("span", family.span, ("first", "last")),
        ("token_dim", family.token_dim, (0, 1)),
        ("returns", family.returns, (None, 0, 1)),
    ):
        if value not in accepted:
            raise ValueError(f"{family.model}.{family.blocks}: {name} must be one of {accepted}, got {value!r}")
    if family.segments and (family.registers or family.leading or (family.mask and not family.cross)):
        raise ValueError(
            f"{family.model}.{family.blocks}: segments count from the first token of a stream without mask"
        )
    if family.model in CROSS_ATTENTION and not family.cross:
        raise ValueError(f"{family.model} has no joint attention: {CROSS_ATTENTION[family.model]}")
    if family.model in FAMILIES and family.cross:
        raise ValueError(f"{family.model} has joint attention; leave out cross=True")
    known = CROSS_FAMILIES if family.cross else FAMILIES
    others = tuple(f for f in known.get(family.model, ()) if f.blocks != family.blocks)
    known[family.model] = (*others, family)


_CROSS = "text enters through cross-attention, and its tokens are never updated beside the image's"
CROSS_ATTENTION: dict[str, str] = dict.fromkeys(
    (
        "AceStepTransformer1DModel",
        "AllegroTransformer3DModel",
        "AnyFlowFARTransformer3DModel",
        "AnyFlowTransformer3DModel",
        "ChronoEditTransformer3DModel",
        "CosmosTransformer3DModel",
        "DreamLiteTransformer2DModel",
        "HeliosTransformer3DModel",
        "HunyuanDiT2DModel",
        "Kandinsky6Transformer3DModel",
        "LTX2VideoTransformer3DModel",
        "LTXVideoTransformer3DModel",
        "LatteTransformer3DModel",
        "LongCatAudioDiTTransformer",
        "LuminaNextDiT2DModel",
        "PixArtTransformer2DModel",
        "SanaTransformer2DModel",
        "SanaVideoTransformer3DModel",
        "SanaWMLTX2RefinerTransformer3DModel",
        "SanaWMTransformer3DModel",
        "SkyReelsV2Transformer3DModel",
        "StableAudio3DiTModel",
        "StableAudioDiTModel",
        "Transformer2DModel",
        "TransformerTemporalModel",
        "UNet2DConditionModel",
        "UNet3DConditionModel",
        "WanAnimate2Transformer3DModel",
        "WanAnimateTransformer3DModel",
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
    ),
    _CROSS,
) | {
    "DiTTransformer2DModel": "it is conditioned on a class label, not on text",
    "Kandinsky5Transformer3DModel": "text tokens attend to themselves only, and the visual blocks cross-attend to them",
    "Kandinsky6SRTransformer3DModel": "it takes no text",
    "MiniMaxMusic3Transformer1DModel": "what it is conditioned on is laid over the audio, channel by channel",
    "RFD4ProteinaTransformer": "it builds proteins and takes no text",
    "PriorTransformer": "its sequence holds text and an image embedding, not image tokens",
    "UNet2DModel": "it takes no text",
}
"""Models known not to do joint attention, with the reason, for errors that explain. Those that are in `CROSS_FAMILIES`
are lifted on request."""

_IMAGE_TOKENS = (
    "the text stream of its {} variants holds image tokens that cannot be told from the words; they take part"
)

_PER_MILLE = 1000.0  # these pipelines divide the timestep by 1000; with a minus, they count up to 1

_ROWS = (
    Family(
        model="SD3Transformer2DModel",
        blocks="transformer_blocks",
        block="JointTransformerBlock",
        layout="dual",
        text="encoder_hidden_states",
        returns=0,
        segments=(
            Segment((("tokenizer", "prompt"), ("tokenizer_2", "prompt_2")), "text_encoder", "tokenizer_max_length"),
            Segment((("tokenizer_3", "prompt_3"),), "text_encoder_3", "max_sequence_length"),
        ),
        note="padding is attended to; the pooled text embedding also carries the caption, through AdaLN, and is not "
        "touched",
    ),
    *(
        Family(
            model=f"{name}Transformer2DModel",
            blocks=blocks,
            block=f"{name}{block}",
            layout="dual",
            text="encoder_hidden_states",
            returns=0,
            timestep_scale=scale,
            parallel=name == "Flux",
            note=note,
        )
        for name, scale, note in (
            ("Flux", _PER_MILLE, "the pooled CLIP embedding also carries the caption, and is not touched"),
            ("LongCatImage", _PER_MILLE, _IMAGE_TOKENS.format("editing")),
            ("OvisImage", _PER_MILLE, ""),
            ("Bria", 1.0, ""),
        )
        for blocks, block in (
            ("transformer_blocks", "TransformerBlock"),
            ("single_transformer_blocks", "SingleTransformerBlock"),
        )
    ),
    Family(
        model="Flux2Transformer2DModel",
        blocks="transformer_blocks",
        block="Flux2TransformerBlock",
        layout="dual",
        text="encoder_hidden_states",
        returns=0,
        timestep_scale=_PER_MILLE,
        parallel=True,
    ),
    Family(
        model="Flux2Transformer2DModel",
        blocks="single_transformer_blocks",
        block="Flux2SingleTransformerBlock",
        layout="packed",
        text="hidden_states",
        timestep_scale=_PER_MILLE,
        parallel=True,
    ),
    Family(
        model="Flux3Transformer2DModel",
        blocks="single_transformer_blocks",
        block="Flux3SingleTransformerBlock",
        layout="dual",
        text="encoder_hidden_states",
        returns=0,
        timestep_scale=None,
    ),
    Family(
        model="ChromaTransformer2DModel",
        blocks="transformer_blocks",
        block="ChromaTransformerBlock",
        layout="dual",
        text="encoder_hidden_states",
        returns=0,
        mask="attention_mask",
        timestep_scale=_PER_MILLE,
    ),
    Family(
        model="ChromaTransformer2DModel",
        blocks="single_transformer_blocks",
        block="ChromaSingleTransformerBlock",
        layout="packed",
        text="hidden_states",
        mask="attention_mask",
        timestep_scale=_PER_MILLE,
    ),
    Family(
        model="QwenImageTransformer2DModel",
        blocks="transformer_blocks",
        block="QwenImageTransformerBlock",
        layout="dual",
        text="encoder_hidden_states",
        returns=0,
        mask="encoder_hidden_states_mask",
        timestep_scale=_PER_MILLE,
        parallel=True,
        note=_IMAGE_TOKENS.format("editing"),
    ),
    *(
        Family(
            model="HunyuanImageTransformer2DModel",
            blocks=blocks,
            block=block,
            layout="dual",
            text="encoder_hidden_states",
            returns=1,
            mask="attention_mask",
            span="last",
        )
        for blocks, block in (
            ("transformer_blocks", "HunyuanImageTransformerBlock"),
            ("single_transformer_blocks", "HunyuanImageSingleTransformerBlock"),
        )
    ),
    *(
        Family(
            model=model,
            blocks=blocks,
            block=block,
            layout="dual",
            text="encoder_hidden_states",
            returns=1,
            mask="attention_mask",
            span="last",
            leading=leading,
            note=note,
        )
        for model, leading, note in (
            ("HunyuanVideoTransformer3DModel", None, _IMAGE_TOKENS.format("image-to-video")),
            ("HunyuanVideoFramepackTransformer3DModel", "image_embeds", ""),
        )
        for blocks, block in (
            ("transformer_blocks", ("HunyuanVideoTransformerBlock", "HunyuanVideoTokenReplaceTransformerBlock")),
            (
                "single_transformer_blocks",
                ("HunyuanVideoSingleTransformerBlock", "HunyuanVideoTokenReplaceSingleTransformerBlock"),
            ),
        )
    ),
    Family(
        model="HunyuanVideo15Transformer3DModel",
        blocks="transformer_blocks",
        block="HunyuanVideo15TransformerBlock",
        layout="dual",
        text="encoder_hidden_states",
        returns=1,
        mask="attention_mask",
        scattered="behind_images",
    ),
    *(
        Family(
            model=model,
            blocks="transformer_blocks",
            block=block,
            layout="dual",
            text="encoder_hidden_states",
            returns=1,
        )
        for model, block in (
            ("CogVideoXTransformer3DModel", "CogVideoXBlock"),
            ("ConsisIDTransformer3DModel", "ConsisIDBlock"),
            ("CogView3PlusTransformer2DModel", "CogView3PlusTransformerBlock"),
            ("EasyAnimateTransformer3DModel", "EasyAnimateTransformerBlock"),
        )
    ),
    *(
        Family(
            model=model,
            blocks="transformer_blocks",
            block=block,
            layout="dual",
            text="encoder_hidden_states",
            returns=1,
            mask=mask,
        )
        for model, block, mask in (
            ("CogView4Transformer2DModel", "CogView4TransformerBlock", "attention_mask"),
            ("GlmImageTransformer2DModel", "GlmImageTransformerBlock", "attention_mask"),
            ("MochiTransformer3DModel", "MochiTransformerBlock", "encoder_attention_mask"),
        )
    ),
    Family(
        model="AuraFlowTransformer2DModel",
        blocks="joint_transformer_blocks",
        block="AuraFlowJointTransformerBlock",
        layout="dual",
        text="encoder_hidden_states",
        returns=0,
        registers=8,
        timestep_scale=_PER_MILLE,
    ),
    Family(
        model="AuraFlowTransformer2DModel",
        blocks="single_transformer_blocks",
        block="AuraFlowSingleTransformerBlock",
        layout="packed",
        text="hidden_states",
        registers=8,
        timestep_scale=_PER_MILLE,
    ),
    Family(
        model="HiDreamImageTransformer2DModel",
        blocks="double_stream_blocks",
        block="HiDreamBlock",
        layout="dual",
        text="encoder_hidden_states",
        returns=1,
        model_text="encoder_hidden_states_t5",
        model_timestep="timesteps",
    ),
    Family(
        model="HiDreamImageTransformer2DModel",
        blocks="single_stream_blocks",
        block="HiDreamBlock",
        layout="packed",
        text="hidden_states",
        span="last",
        model_text="encoder_hidden_states_t5",
        length=(("encoder_hidden_states_t5", 1, 1), ("encoder_hidden_states_llama3", 2, 2)),
        model_timestep="timesteps",
    ),
    Family(
        model="BriaFiboTransformer2DModel",
        blocks="transformer_blocks",
        block="BriaFiboTransformerBlock",
        layout="dual",
        text="encoder_hidden_states",
        returns=0,
        mask="joint_attention_kwargs.attention_mask",
    ),
    Family(
        model="BriaFiboTransformer2DModel",
        blocks="single_transformer_blocks",
        block="BriaFiboSingleTransformerBlock",
        layout="packed",
        text="hidden_states",
        mask="joint_attention_kwargs.attention_mask",
    ),
    Family(
        model="JoyImageEditTransformer3DModel",
        blocks="double_blocks",
        block="JoyImageTransformerBlock",
        layout="dual",
        text="encoder_hidden_states",
        returns=1,
        note=_IMAGE_TOKENS.format("editing"),
    ),
    Family(
        model="JoyImageEditPlusTransformer3DModel",
        blocks="double_blocks",
        block="JoyImageEditPlusTransformerBlock",
        layout="dual",
        text="encoder_hidden_states",
        returns=1,
        mask="attention_mask",
        span="last",
        note=_IMAGE_TOKENS.format("editing"),
    ),
    *(
        Family(
            model="MotifVideoTransformer3DModel",
            blocks=blocks,
            block=block,
            layout="dual",
            text="encoder_hidden_states",
            returns=1,
            mask="attention_mask",
            span="last",
            leading="image_embeds",
            spared=spared,
        )
        for blocks, block, spared in (
            ("transformer_blocks", "MotifVideoTransformerBlock", None),
            ("single_transformer_blocks", "MotifVideoSingleTransformerBlock", "num_decoder_layers"),
        )
    ),
    Family(
        model="NucleusMoEImageTransformer2DModel",
        blocks="transformer_blocks",
        block="NucleusMoEImageTransformerBlock",
        layout="dual",
        text="encoder_hidden_states",
        mask="attention_kwargs.attention_mask",
        span="last",
        timestep_scale=_PER_MILLE,
        note="the text is not updated: each block reads the same states",
    ),
    Family(
        model="PRXTransformer2DModel",
        blocks="blocks",
        block="PRXBlock",
        layout="dual",
        text="encoder_hidden_states",
        mask="attention_mask",
        timestep_scale=_PER_MILLE,
        note="the text is not updated: each block reads the same states",
    ),
    Family(
        model="Krea2Transformer2DModel",
        blocks="transformer_blocks",
        block="Krea2TransformerBlock",
        layout="packed",
        text="hidden_states",
        mask="attention_mask",
        timestep_scale=_PER_MILLE,
    ),
    *(
        Family(
            model=model,
            blocks=blocks,
            block=block,
            layout="packed",
            text=sequence,
            scattered=scattered,
            model_text=model_text,
            model_timestep=timestep,
            timestep_scale=scale,
            timestep_zero=_PER_MILLE if scale else 0.0,
        )
        for model, blocks, block, sequence, scattered, model_text, timestep, scale in (
            (
                "Lumina2Transformer2DModel",
                "layers",
                "Lumina2TransformerBlock",
                "hidden_states",
                "in_front",
                "encoder_hidden_states",
                "timestep",
                -_PER_MILLE,
            ),
            (
                "Ideogram4Transformer2DModel",
                "layers",
                "Ideogram4TransformerBlock",
                "hidden_states",
                "indicated",
                "encoder_hidden_states",
                "timestep",
                -_PER_MILLE,
            ),
            (
                "MiniMaxH3Transformer3DModel",
                "transformer_blocks",
                "MiniMaxH3TransformerBlock",
                "hidden_states",
                "tagged",
                "encoder_hidden_states",
                "timestep",
                None,
            ),
            (
                "ZImageTransformer2DModel",
                "layers",
                "ZImageTransformerBlock",
                "x",
                "z_image",
                "cap_feats",
                "t",
                -_PER_MILLE,
            ),
        )
    ),
    Family(
        model="ErnieImageTransformer2DModel",
        blocks="layers",
        block="ErnieImageSharedAdaLNBlock",
        layout="packed",
        text="x",
        span="last",
        token_dim=0,
        mask="attention_mask",
        model_text="text_bth",
    ),
    Family(
        model="QwenImage21Transformer2DModel",
        blocks="transformer_blocks",
        block="QwenImage21TransformerBlock",
        layout="packed",
        text="hidden_states",
        scattered="interleaved",
        mask="key_valid",
        timestep_scale=_PER_MILLE,
        cached="kv_cache_mode",
        note="use_kv_cache, on by default, has the text read in the first step only: changed settings act with the "
        "next picture, and start and stop are refused",
    ),
    Family(
        model="OmniGenTransformer2DModel",
        blocks="layers",
        block="OmniGenBlock",
        layout="packed",
        text="hidden_states",
        scattered="before_time",
        model_text="input_ids",
    ),
    Family(
        model="BriaFibo2Transformer2DModel",
        blocks="layers",
        block="BriaFibo2TransformerBlock",
        layout="packed",
        text="x",
        scattered="gist",
        timestep_scale=_PER_MILLE,
        note="what is lifted is a summary of the prompt in learned tokens; some blocks also cross-attend to the prompt "
        "itself, which is not touched",
    ),
    Family(
        model="Cosmos3OmniTransformer",
        blocks="layers",
        block="Cosmos3VLTextMoTDecoderLayer",
        layout="dual",
        text="und_seq",
        token_dim=0,
        returns=0,
        model_text="input_ids",
        model_timestep="vision_timesteps",
        note="the whole chat, with its system prompt, takes part; the text never attends to the image",
    ),
    Family(
        model="SD3ControlNetModel",
        blocks="transformer_blocks",
        block="JointTransformerBlock",
        layout="dual",
        text="encoder_hidden_states",
        returns=0,
    ),
    *(
        Family(
            model="FluxControlNetModel",
            blocks=blocks,
            block=block,
            layout="dual",
            text="encoder_hidden_states",
            returns=0,
            leading="controlnet_mode",  # one learned token per mode, of a union ControlNet
            timestep_scale=_PER_MILLE,
        )
        for blocks, block in (
            ("transformer_blocks", "FluxTransformerBlock"),
            ("single_transformer_blocks", "FluxSingleTransformerBlock"),
        )
    ),
    Family(
        model="QwenImageControlNetModel",
        blocks="transformer_blocks",
        block="QwenImageTransformerBlock",
        layout="dual",
        text="encoder_hidden_states",
        returns=0,
        mask="encoder_hidden_states_mask",
        timestep_scale=_PER_MILLE,
    ),
)

_POOLED = "the pooled text embedding also carries the caption, and is not touched"
_WORDS = (Segment((("tokenizer", "prompt"),)),)

_CROSS_ROWS = (
    *(
        Family(
            model="UNet2DConditionModel",
            blocks=f"{part}.attentions.*.transformer_blocks",
            block="BasicTransformerBlock",
            layout="dual",
            text="encoder_hidden_states",
            cross=True,
            segments=(Segment((("tokenizer", "prompt"), ("tokenizer_2", "prompt_2"))),),
            note="padding is attended to; in Stable Diffusion XL " + _POOLED,
        )
        for part in ("down_blocks.*", "mid_block", "up_blocks.*")
    ),
    *(
        Family(
            model=model,
            blocks="transformer_blocks",
            block=block,
            layout="dual",
            text="encoder_hidden_states",
            cross=True,
            mask="encoder_attention_mask",
            additive=True,
            timestep_scale=scale,
            segments=segments,
        )
        for model, block, scale, segments in (
            ("AllegroTransformer3DModel", "AllegroTransformerBlock", 1.0, ()),
            ("LTXVideoTransformer3DModel", "LTXVideoTransformerBlock", 1.0, _WORDS),
            ("LatteTransformer3DModel", "BasicTransformerBlock", 1.0, ()),
            ("PixArtTransformer2DModel", "BasicTransformerBlock", 1.0, ()),
            ("SanaTransformer2DModel", "SanaTransformerBlock", None, ()),  # a scale of the config's own
            ("SanaVideoTransformer3DModel", "SanaVideoTransformerBlock", 1.0, ()),
        )
    ),
    Family(
        model="HunyuanDiT2DModel",
        blocks="blocks",
        block="HunyuanDiTBlock",
        layout="dual",
        text="encoder_hidden_states",
        cross=True,
        scattered="unpadded",
        note=_POOLED,
    ),
    Family(
        model="LuminaNextDiT2DModel",
        blocks="layers",
        block="LuminaNextDiTBlock",
        layout="dual",
        text="encoder_hidden_states",
        cross=True,
        mask="encoder_mask",
        timestep_scale=-_PER_MILLE,
        timestep_zero=_PER_MILLE,
        note=_POOLED,
    ),
    *(
        Family(
            model=model,
            blocks=blocks,
            block=block,
            layout="packed",  # image tokens stand before the text in its variants that read a picture
            text="encoder_hidden_states",
            span="last",
            cross=True,
            timestep_scale=scale,
        )
        for model, blocks, block, scale in (
            ("ChronoEditTransformer3DModel", "blocks", "WanTransformerBlock", 1.0),
            # with diffusion forcing each frame has a step of its own
            ("SkyReelsV2Transformer3DModel", "blocks", "SkyReelsV2TransformerBlock", None),
            ("WanTransformer3DModel", "blocks", "WanTransformerBlock", 1.0),
            ("WanVACETransformer3DModel", "vace_blocks", "WanVACETransformerBlock", 1.0),
            ("WanVACETransformer3DModel", "blocks", "WanTransformerBlock", 1.0),
        )
    ),
)

_BATCH: dict[Literal["uncond_cond", "cond_uncond", "separate", "cond"], tuple[str, ...]] = {
    "uncond_cond": (
        "AllegroTransformer3DModel",
        "AuraFlowTransformer2DModel",
        "BriaFiboTransformer2DModel",
        "BriaTransformer2DModel",
        "CogVideoXTransformer3DModel",
        "CogView3PlusTransformer2DModel",
        "ConsisIDTransformer3DModel",
        "EasyAnimateTransformer3DModel",
        "ErnieImageTransformer2DModel",
        "HiDreamImageTransformer2DModel",
        "HunyuanDiT2DModel",
        "LTXVideoTransformer3DModel",
        "LatteTransformer3DModel",
        "MochiTransformer3DModel",
        "PRXTransformer2DModel",
        "PixArtTransformer2DModel",
        "SD3Transformer2DModel",
        "SanaTransformer2DModel",
        "SanaVideoTransformer3DModel",
        "UNet2DConditionModel",
    ),
    "cond_uncond": ("LuminaNextDiT2DModel", "ZImageTransformer2DModel"),
    "separate": (
        "ChromaTransformer2DModel",
        "ChronoEditTransformer3DModel",
        "CogView4Transformer2DModel",
        "Cosmos3OmniTransformer",
        "Flux2Transformer2DModel",
        "FluxTransformer2DModel",
        "GlmImageTransformer2DModel",
        "HunyuanImageTransformer2DModel",
        "HunyuanVideo15Transformer3DModel",
        "HunyuanVideoFramepackTransformer3DModel",
        "HunyuanVideoTransformer3DModel",
        "JoyImageEditTransformer3DModel",
        "Krea2Transformer2DModel",
        "LongCatImageTransformer2DModel",
        "Lumina2Transformer2DModel",
        "MotifVideoTransformer3DModel",
        "NucleusMoEImageTransformer2DModel",
        "OvisImageTransformer2DModel",
        "QwenImage21Transformer2DModel",
        "QwenImageTransformer2DModel",
        "SkyReelsV2Transformer3DModel",
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
    ),
    "cond": ("Ideogram4Transformer2DModel",),  # its unconditional half is another model
}
"""`Family.batch` of the models above: a fact of their pipelines. Where it is not known, `branch` is refused."""

_BYT5 = Run("text_encoder_2", "tokenizer_2", trimmed=True)  # of what the prompt puts in quotes
_START = "prompt_template_encode_start_idx"
_LLAMA = Run("text_encoder_4", "tokenizer_4", "prompt_4")
_RUNS: dict[str, tuple[Run, ...]] = {
    **dict.fromkeys(
        (
            "AuraFlowTransformer2DModel",
            "BriaFiboTransformer2DModel",
            "BriaTransformer2DModel",
            "ChromaTransformer2DModel",
            "CogVideoXTransformer3DModel",
            "CogView3PlusTransformer2DModel",
            "CogView4Transformer2DModel",
            "ConsisIDTransformer3DModel",
            "EasyAnimateTransformer3DModel",
            "ErnieImageTransformer2DModel",
            "Flux2Transformer2DModel",
            "MochiTransformer3DModel",
            "MotifVideoTransformer3DModel",
            "PRXTransformer2DModel",
        ),
        (Run(),),
    ),
    **dict.fromkeys(("Lumina2Transformer2DModel", "ZImageTransformer2DModel"), (Run(trimmed=True),)),
    **dict.fromkeys(
        ("HunyuanVideoTransformer3DModel", "HunyuanVideoFramepackTransformer3DModel"), (Run(front="crop_start"),)
    ),
    **dict.fromkeys(
        ("HunyuanImageTransformer2DModel", "HunyuanVideo15Transformer3DModel"),
        (_BYT5, Run(front=_START, trimmed=True)),
    ),
    "FluxTransformer2DModel": (Run("text_encoder_2", "tokenizer_2", "prompt_2"),),
    "HiDreamImageTransformer2DModel": (Run("text_encoder_3", "tokenizer_3", "prompt_3"), _LLAMA, _LLAMA),
    "Ideogram4Transformer2DModel": (Run("text_encoder.language_model.embed_tokens", trimmed=True, padding=0),),
    "Krea2Transformer2DModel": (Run(front=_START),),
    "LongCatImageTransformer2DModel": (
        Run(front="prompt_template_encode_prefix", back="prompt_template_encode_suffix"),
    ),
    "NucleusMoEImageTransformer2DModel": (Run(tokenizer="processor"),),
    "OvisImageTransformer2DModel": (Run(front="user_prompt_begin_id"),),
    "QwenImage21Transformer2DModel": (
        Run(tokenizer="processor", front="_drop_idx", trimmed=True, skipped="_img_token_id"),
    ),
    "QwenImageTransformer2DModel": (Run(front=_START, trimmed=True),),
}
"""`Family.runs` of the models above: a fact of the `encode_prompt` of their pipelines."""

_MODULAR = "diffusers has only modular blocks for it, and no pipeline whose encode_prompt could be heard"
_PICTURES = "its pipelines encode the prompt together with pictures, and not in encode_prompt"
_NO_ENCODER = "its pipeline has no text encoder: the transformer itself embeds the words"
_WORDLESS = {
    "BriaFibo2Transformer2DModel": "a summary of the prompt in learned tokens stands there",
    "Cosmos3OmniTransformer": _NO_ENCODER,
    "Flux3Transformer2DModel": _MODULAR,
    "GlmImageTransformer2DModel": "only what the prompt puts in quotes stands there, in bytes",
    "JoyImageEditPlusTransformer3DModel": _PICTURES,
    "JoyImageEditTransformer3DModel": _PICTURES,
    "MiniMaxH3Transformer3DModel": _MODULAR,
    "OmniGenTransformer2DModel": _NO_ENCODER,
}
"""`Family.wordless` of the others."""

for _row in (*_ROWS, *_CROSS_ROWS):
    _batch = next((scheme for scheme, models in _BATCH.items() if _row.model in models), _row.batch)
    register(
        replace(
            _row,
            batch=_batch,
            runs=_RUNS.get(_row.model, ()),
            wordless=_WORDLESS.get(_row.model, _row.wordless),
            uncond_first=_row.model == "PRXTransformer2DModel",
        )
    )
