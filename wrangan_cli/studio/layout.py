"""What stands where on the page. Gradio's components, without what they do (page.py)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import gradio as gr

from wrangan_cli.engine.data.images import MAX_PIXELS
from wrangan_cli.engine.editing.directions import Direction
from wrangan_cli.studio import pictures
from wrangan_cli.studio.work import Work

MOST_MB = 100
"""Largest file that can be dropped in."""
PLACES = 12
"""Sliders for directions of files."""
GROUPS = ("Expression", "Age and gender", "Pose", "Other", "Principal components")
_OPEN = GROUPS[:3]
_GROUP_OF = {
    **dict.fromkeys(("smile", "mouth-open"), "Expression"),
    **dict.fromkeys(("age", "gender"), "Age and gender"),
    "pose": "Pose",
}
ABOUT = """
<details class="ws-about"><summary>Before you share an edited face</summary>
<p>Edit pictures of yourself, or of people who have agreed to it. Do not pass an edit off as a photograph:
every image and film you download states in its metadata that it was edited and by which program; leave that
in. A direction is what a model has learnt from labels on other people’s faces: “age” and “gender” are how
those labels see a face, not what a person is.</p></details>
<p class="ws-foot">Nothing leaves this machine. This tab’s photographs and codes are deleted when you close
it; what you download is yours to keep.</p>
"""


@dataclass
class Parts:
    """The components that events read or change."""

    stage: gr.HTML = field(init=False)
    progress: gr.HTML = field(init=False)
    stop: gr.Button = field(init=False)
    message: gr.HTML = field(init=False)
    compare: gr.Radio = field(init=False)
    link: gr.Textbox = field(init=False)
    tabs: gr.Tabs = field(init=False)
    # Photograph
    photo: gr.File = field(init=False)
    crops: gr.HTML = field(init=False)
    whole: gr.Button = field(init=False)
    invert: gr.Button = field(init=False)
    method: gr.Dropdown = field(init=False)
    steps: gr.Number = field(init=False)
    random: gr.Button = field(init=False)
    load: gr.UploadButton = field(init=False)
    # Edit
    subject: gr.Dropdown = field(init=False)
    about: gr.HTML = field(init=False)
    sliders: dict[str, gr.Slider] = field(default_factory=dict)
    places: list[gr.Slider] = field(default_factory=list)
    imported: gr.Accordion = field(init=False)
    directions: gr.UploadButton = field(init=False)
    undo: gr.Button = field(init=False)
    reset: gr.Button = field(init=False)
    # Save
    feather: gr.Slider = field(init=False)
    detail: gr.Checkbox = field(init=False)
    paste: gr.Button = field(init=False)
    save_image: gr.Button = field(init=False)
    save_paste: gr.Button = field(init=False)
    save_code: gr.Button = field(init=False)
    save_edited: gr.Button = field(init=False)
    commands: gr.Textbox = field(init=False)
    # More
    first: gr.Dropdown = field(init=False)
    second: gr.Dropdown = field(init=False)
    fraction: gr.Slider = field(init=False)
    frames: gr.Slider = field(init=False)
    fps: gr.Slider = field(init=False)
    mp4: gr.Button = field(init=False)
    gif: gr.Button = field(init=False)
    film: gr.HTML = field(init=False)
    strip_of: gr.Dropdown = field(init=False)
    low: gr.Number = field(init=False)
    high: gr.Number = field(init=False)
    pictures: gr.Slider = field(init=False)
    strip: gr.Button = field(init=False)
    strip_shown: gr.HTML = field(init=False)
    methods: gr.CheckboxGroup = field(init=False)
    seconds: gr.Slider = field(init=False)
    side_by_side: gr.Button = field(init=False)
    methods_shown: gr.HTML = field(init=False)

    @property
    def all_sliders(self) -> list[gr.Slider]:
        """Those of the model's directions, then the places of imported ones."""
        return [*self.sliders.values(), *self.places]


def group_of(direction: Direction) -> str:
    """The heading that a direction's slider stands under."""
    if direction.source.get("method") in ("GANSpace", "pca") or direction.name.startswith("pca-"):
        return "Principal components"
    return _GROUP_OF.get(direction.name, "Other")


def lay_out(work: Work) -> Parts:
    """Make the components, within a `gr.Blocks`."""
    parts = Parts()
    model = work.model
    gr.HTML(
        f"<header><h1>wrangan <b>studio</b></h1><p>model {model.name} · {model.resolution} px · "
        "runs on this machine only</p></header>"
    )
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=6, min_width=300, elem_classes="viewer"):
            _viewer(parts)
        with (
            gr.Column(scale=5, min_width=320, elem_classes="controls"),
            gr.Tabs(elem_id="tabs") as parts.tabs,
        ):
            with gr.Tab("Photograph", id="photograph"):
                _photograph(parts, work)
            with gr.Tab("Edit", id="edit"):
                _edit(parts, work.directions)
            with gr.Tab("Save", id="save"):
                _save(parts)
            with gr.Tab("More", id="more"):
                _more(parts, work)
    gr.HTML(ABOUT)
    parts.link = gr.Textbox(visible="hidden", elem_id="link")
    return parts


def _viewer(parts: Parts) -> None:
    parts.stage = gr.HTML(pictures.EMPTY, elem_id="stage")
    parts.progress = gr.HTML("", elem_id="progress")
    parts.stop = gr.Button("Stop and keep the result so far", size="sm", visible=False, elem_id="stop")
    parts.message = gr.HTML("", elem_id="message")
    with gr.Row(elem_classes="below"):
        parts.compare = gr.Radio(
            ["photograph", "unedited"],
            value="photograph",
            label="compare with",
            container=False,
            scale=3,
            elem_id="compare-with",
            min_width=120,
        )
        parts.undo = gr.Button("Undo", size="sm", scale=1, min_width=50, elem_id="undo")
        parts.reset = gr.Button("Reset all", size="sm", scale=1, min_width=60, elem_id="reset")


def _photograph(parts: Parts, work: Work) -> None:
    parts.photo = gr.File(
        label="photograph", show_label=False, file_count="multiple", elem_id="photo", height=130
    )
    gr.HTML(
        f'<p class="ws-note">JPEG, PNG, WebP, TIFF, HEIC …, up to {MOST_MB} MB and '
        f"{MAX_PIXELS // 10**6} megapixels</p>"
    )
    parts.crops = gr.HTML("", elem_id="crops", js_on_load=_PICK)
    parts.whole = gr.Button("Use the whole picture instead", size="sm", visible=False, elem_id="whole")
    parts.invert = gr.Button("Invert", variant="primary", interactive=False, elem_id="invert")
    with gr.Accordion("Inversion settings", open=False):
        parts.method = gr.Dropdown(work.methods, value=work.methods[0], label="Method", elem_id="method")
        parts.steps = gr.Number(
            label="Steps (0: the model’s default)",
            value=0,
            minimum=0,
            maximum=5000,
            precision=0,
            elem_id="steps",
        )
    gr.HTML('<p class="ws-or">or start without a photograph</p>')
    with gr.Row():
        parts.random = gr.Button("Random face", size="sm", elem_id="random", min_width=120)
        parts.load = gr.UploadButton(
            "Open a code (.st)", size="sm", file_count="multiple", elem_id="load", min_width=120
        )


def _edit(parts: Parts, directions: Mapping[str, Direction]) -> None:
    parts.subject = gr.Dropdown([], label="Face", interactive=True, elem_id="subject")
    parts.about = gr.HTML("", elem_id="about")
    for group in GROUPS:
        some = [direction for direction in directions.values() if group_of(direction) == group]
        if some:
            with gr.Accordion(group, open=group in _OPEN):
                parts.sliders |= {direction.name: _slider(direction) for direction in some}
    with gr.Accordion("From files", visible=False, elem_id="imported") as parts.imported:
        parts.places = [
            gr.Slider(-3, 3, value=0, step=0.1, visible=False, elem_classes="direction")
            for _ in range(PLACES)
        ]
    parts.directions = gr.UploadButton("Add directions from a file", size="sm", elem_id="directions")
    # In the model's order, which is that of the command lines, whatever group they stand in.
    parts.sliders = {name: parts.sliders[name] for name in directions}


def _slider(direction: Direction) -> gr.Slider:
    low, high = direction.range
    return gr.Slider(
        low,
        high,
        value=0,
        step=0.1,
        label=direction.name,
        elem_id=f"direction-{direction.name}",
        elem_classes="direction",
    )


def _save(parts: Parts) -> None:
    with gr.Row():
        parts.save_image = gr.Button("Download image", variant="primary", elem_id="save-image", min_width=140)
        parts.save_code = gr.Button("Download code (.st)", elem_id="save-code", min_width=140)
    with gr.Accordion("Back into the photograph", open=True):
        parts.feather = gr.Slider(
            0, 0.5, value=0.1, step=0.01, label="Soft border (fraction of the face crop)"
        )
        parts.detail = gr.Checkbox(label="Add only the change, to keep the photograph’s fine detail")
        with gr.Row():
            parts.paste = gr.Button("Show in the photograph", elem_id="paste", min_width=140)
            parts.save_paste = gr.Button("Download photograph", elem_id="save-paste", min_width=140)
    parts.commands = gr.Textbox(
        label="Commands that make the same picture",
        lines=5,
        max_lines=12,
        interactive=False,
        buttons=["copy"],
        elem_id="commands",
    )
    parts.save_edited = gr.Button("Download edited code", size="sm", elem_id="save-edited")


def _more(parts: Parts, work: Work) -> None:
    with gr.Accordion("Between two faces", open=True):
        with gr.Row():
            parts.first = gr.Dropdown([], label="From", interactive=True, min_width=120, elem_id="first")
            parts.second = gr.Dropdown([], label="To", interactive=True, min_width=120, elem_id="second")
        parts.fraction = gr.Slider(0, 1, value=0, step=0.02, label="How far along", elem_id="share")
        with gr.Row():
            parts.frames = gr.Slider(
                2, 120, value=24, step=1, label="Frames", min_width=120, elem_id="frames"
            )
            parts.fps = gr.Slider(
                1, 30, value=12, step=1, label="Frames per second", min_width=120, elem_id="fps"
            )
        with gr.Row():
            parts.mp4 = gr.Button("Make an MP4", size="sm", min_width=100, elem_id="mp4")
            parts.gif = gr.Button("Make a GIF", size="sm", min_width=100, elem_id="gif")
        parts.film = gr.HTML("", elem_id="film")
    with gr.Accordion("Strip of strengths", open=False, elem_id="strip-box"):
        names = list(work.directions)
        parts.strip_of = gr.Dropdown(names, value=names[0] if names else None, label="Direction")
        with gr.Row():
            parts.low = gr.Number(label="From", value=-3, min_width=80)
            parts.high = gr.Number(label="To", value=3, min_width=80)
        parts.pictures = gr.Slider(3, 11, value=5, step=1, label="Number of pictures", elem_id="pictures")
        parts.strip = gr.Button("Draw the strip", size="sm", elem_id="strip")
        parts.strip_shown = gr.HTML("", elem_id="strip-shown")
    with gr.Accordion("Methods side by side", open=False, elem_id="methods-box"):
        chosen = [name for name in ("wrangan", "pti", "sg2-w-plus", "encoder") if name in work.methods][:3]
        parts.methods = gr.CheckboxGroup(work.methods, value=chosen, label="Methods", elem_id="methods")
        parts.seconds = gr.Slider(1, 120, value=20, step=1, label="Seconds per method", elem_id="seconds")
        parts.side_by_side = gr.Button("Invert the chosen face with each", size="sm", elem_id="side-by-side")
        parts.methods_shown = gr.HTML("", elem_id="methods-shown")


_PICK = """
element.addEventListener('click', (event) => {
    const button = event.target.closest('[data-crop]');
    if (button) trigger('select', {crop: Number(button.dataset.crop)});
});
"""
