"""The page: which function each event calls, and how Gradio serves it, to the browser alone."""

from pathlib import Path
from typing import Any

import gradio as gr

from wrangan_cli.studio.downloads import AllEvents
from wrangan_cli.studio.layout import MOST_MB, Parts, lay_out
from wrangan_cli.studio.session import Sessions
from wrangan_cli.studio.work import Work

STYLE = Path(__file__).with_name("style.css")
_ABANDONED = 300
"""Seconds after which an upload is removed that no tab has taken."""
_DOWNLOAD = """(link) => {
    if (!link) return;
    const anchor = document.createElement('a');
    anchor.href = link;
    anchor.download = decodeURIComponent(link.split('/').pop());
    document.body.append(anchor);
    anchor.click();
    anchor.remove();
}"""
_KEYS = """<script>
document.addEventListener('keydown', (event) => {
    const typing = event.target.matches('input[type=number], input[type=text], textarea');
    const press = (id) => { event.preventDefault(); document.querySelector(id)?.click(); };
    if ((event.ctrlKey || event.metaKey) && event.key === 'z' && !typing) press('#undo');
    if (event.key === 'Escape') press('#stop');
});
</script>"""


def theme() -> gr.themes.Base:
    """Calm, and of the system's own fonts: none are fetched."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_md,
        font=sans,
        font_mono=mono,
    )


def build(work: Work, sessions: Sessions, given: list[Path]) -> gr.Blocks:
    """The page, with its events. given: photographs and codes that each tab begins with."""
    title = "wrangan studio"
    with gr.Blocks(
        title=title, analytics_enabled=False, fill_width=True, delete_cache=(_ABANDONED, _ABANDONED)
    ) as page:
        parts = lay_out(work)
        _wire(page, parts, AllEvents(work, sessions, parts, given))
    return page


def _wire(page: gr.Blocks, parts: Parts, events: AllEvents) -> None:
    # Without `show_progress_on` the browser would update with each event whatever earlier ones changed, too.
    quiet: dict[str, Any] = {
        "show_progress": "hidden",
        "show_progress_on": parts.progress,
        "api_visibility": "private",
    }
    # What each changes, and no more: the browser and Gradio work for every output, changed or not.
    drawn = [parts.stage, parts.commands, parts.message]
    edited = [*parts.all_sliders, *drawn]
    shown = [*edited, parts.subject, parts.about, parts.first, parts.second, parts.fraction]
    crops = [parts.crops, parts.whole, parts.invert, parts.stage, parts.message]
    forming = [parts.stage, parts.progress, parts.message, parts.stop]
    taken = [*shown, parts.crops, parts.whole, parts.invert, parts.tabs]

    page.load(events.begin, None, taken, **quiet)
    page.unload(events.end)

    parts.photo.upload(events.upload, parts.photo, [*taken, parts.photo], **quiet)
    parts.load.upload(events.load, parts.load, [*taken, parts.photo], **quiet)
    parts.whole.click(events.take_whole, None, crops, **quiet)
    parts.crops.select(events.pick, None, crops, **quiet)
    # One at a time, but each tab hears that it waits.
    inverting = parts.invert.click(
        events.invert,
        [parts.method, parts.steps],
        [*forming, parts.invert, parts.tabs],
        concurrency_limit=None,
        **quiet,
    )
    inverting.then(events.show, None, shown, **quiet)
    parts.stop.click(events.stop, None, parts.progress, **quiet)
    parts.random.click(events.random, None, [*shown, parts.tabs], **quiet)
    parts.subject.input(events.choose, parts.subject, shown, **quiet)

    sliders: list[tuple[str | int, gr.Slider]] = [*parts.sliders.items(), *enumerate(parts.places)]
    for which, slider in sliders:
        # A drawing at a time; of the positions that a slider has meanwhile, the last is drawn.
        gr.on(
            [slider.input, slider.release],
            _moved(events, which),
            slider,
            drawn,
            trigger_mode="always_last",
            concurrency_id="drawing",
            **quiet,
        )
    parts.undo.click(events.undo, None, edited, **quiet)
    parts.reset.click(events.reset, None, edited, **quiet)
    parts.compare.input(events.compare, parts.compare, drawn, **quiet)
    parts.directions.upload(
        events.import_directions, parts.directions, [*edited, parts.imported, parts.strip_of], **quiet
    )

    into = [parts.feather, parts.detail]
    parts.paste.click(events.paste, into, drawn, **quiet)
    for button, event, inputs in (
        (parts.save_image, events.save_image, None),
        (parts.save_code, events.save_code, None),
        (parts.save_edited, events.save_edited, None),
        (parts.save_paste, events.save_paste, into),
    ):
        saved = button.click(event, inputs, [parts.link, parts.message], **quiet)
        saved.then(None, parts.link, None, js=_DOWNLOAD)

    pair = [parts.first, parts.second]
    parts.fraction.input(
        events.between,
        [*pair, parts.fraction],
        [parts.stage, parts.message],
        trigger_mode="always_last",
        concurrency_id="drawing",
        **quiet,
    )
    for button, suffix in ((parts.mp4, ".mp4"), (parts.gif, ".gif")):
        button.click(
            _film(events, suffix),
            [*pair, parts.frames, parts.fps],
            [parts.film, parts.message],
            **quiet,
        )
    parts.strip.click(
        events.strip,
        [parts.strip_of, parts.low, parts.high, parts.pictures],
        [parts.strip_shown, parts.message],
        **quiet,
    )
    comparing = parts.side_by_side.click(
        events.side_by_side,
        [parts.methods, parts.seconds],
        [*forming, parts.methods_shown],
        concurrency_limit=None,
        **quiet,
    )
    comparing.then(events.show, None, shown, **quiet)


def _moved(events: AllEvents, which: str | int) -> Any:
    def moved(strength: float, request: gr.Request) -> dict[Any, Any]:
        return events.move(which, strength, request)

    return moved


def _film(events: AllEvents, suffix: str) -> Any:
    def film(first: str, second: str, frames: float, fps: float, request: gr.Request) -> dict[Any, Any]:
        return events.film(suffix, first, second, frames, fps, request)

    return film


def launch(page: gr.Blocks, sessions: Sessions, host: str, port: int) -> str:
    """Begin to serve, and return the address. Raises OSError where the port is taken."""
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=True,
        footer_links=[],
        allowed_paths=[str(sessions.root)],
        max_file_size=f"{MOST_MB}mb",
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=theme(),
        css_paths=STYLE,
        head=_KEYS,
    )
    return str(address)
