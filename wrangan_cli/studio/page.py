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
    everything = [part for value in vars(parts).values() for part in _components(value)]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    whole: dict[str, Any] = {**quiet, "outputs": everything}
    drawn: dict[str, Any] = {**quiet, "outputs": [parts.stage, parts.commands, parts.message, parts.link]}
    compared, sliders = parts.compare, parts.all_sliders

    page.load(events.begin, None, **whole)
    page.unload(events.end)

    parts.photo.upload(events.upload, parts.photo, **whole)
    parts.load.upload(events.load, parts.load, **whole)
    parts.whole.click(events.take_whole, None, **whole)
    parts.crops.select(events.pick, None, **whole)
    # One at a time, but each tab hears that it waits.
    parts.invert.click(events.invert, [parts.method, parts.steps], **whole, concurrency_limit=None)
    parts.stop.click(events.stop, None, **whole)
    parts.random.click(events.random, None, **whole)
    parts.subject.input(events.choose, [parts.subject, compared], **whole)

    asked = [*sliders, compared]
    moving = gr.on(
        [slider.input for slider in sliders], events.preview, asked, **drawn, trigger_mode="always_last"
    )
    # Each preview is followed by one, of which the last draws: "once" would leave that out.
    moving.then(events.settle, asked, **drawn, concurrency_limit=None, trigger_mode="multiple")
    gr.on([slider.release for slider in sliders], events.full, asked, **drawn, trigger_mode="always_last")
    parts.undo.click(events.undo, compared, **whole)
    parts.reset.click(events.reset, compared, **whole)
    compared.input(events.compare, compared, **drawn)
    parts.directions.upload(events.import_directions, parts.directions, **whole)

    into = [parts.feather, parts.detail]
    parts.paste.click(events.paste, into, **drawn)
    for button, event, inputs in (
        (parts.save_image, events.save_image, None),
        (parts.save_code, events.save_code, None),
        (parts.save_edited, events.save_edited, None),
        (parts.save_paste, events.save_paste, into),
    ):
        saved = button.click(event, inputs, **drawn)
        saved.then(None, parts.link, None, js=_DOWNLOAD)

    pair = [parts.first, parts.second]
    parts.fraction.input(events.between, [*pair, parts.fraction], **drawn, trigger_mode="always_last")
    for button, suffix in ((parts.mp4, ".mp4"), (parts.gif, ".gif")):
        button.click(_film(events, suffix), [*pair, parts.frames, parts.fps], **whole)
    parts.strip.click(events.strip, [parts.strip_of, parts.low, parts.high, parts.pictures], **whole)
    parts.side_by_side.click(
        events.side_by_side, [parts.methods, parts.seconds], **whole, concurrency_limit=None
    )


def _film(events: AllEvents, suffix: str) -> Any:
    def film(first: str, second: str, frames: float, fps: float, request: gr.Request) -> dict[Any, Any]:
        return events.film(suffix, first, second, frames, fps, request)

    return film


def _components(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [value]


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
