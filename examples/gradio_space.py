"""A page of Gradio for a Hugging Face Space: `pip install imprompt gradio`, then `python gradio_space.py`.

In a Space this file is `app.py`. For another base, load any pipeline of diffusers and an adapter that fits
it: docs/quickstart.md has the lines. `imprompt serve` has a page of its own.
"""

import gradio as gr
from PIL import Image

import imprompt

PIPE = imprompt.mini.pipeline()
ADAPTER = imprompt.load_adapter("mini")
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def generate(
    picture: Image.Image | None, prompt: str, scale: float, layers: str, seed: float, strip: bool
) -> list[tuple[Image.Image, str]]:
    """Return pictures of an image prompt and a text, each with its strength."""
    if picture is None:
        raise gr.Error("Give a picture first.")
    pictures = []
    for strength in STRENGTHS if strip else (scale,):
        reference = imprompt.Reference(picture, scale=strength, layers=layers)
        pictures += imprompt.generate(PIPE, ADAPTER, reference, prompt=prompt, seed=int(seed))
    return [
        (made, f"strength {one:g}")
        for made, one in zip(pictures, STRENGTHS if strip else (scale,), strict=True)
    ]


demo = gr.Interface(
    generate,
    inputs=[
        gr.Image(type="pil", label="Image prompt"),
        gr.Textbox(label="Text", value="sunglasses, on a red background"),
        gr.Slider(0, 1.5, value=0.6, step=0.05, label="Strength"),
        gr.Dropdown(["full", "style", "composition"], value="full", label="Use as"),
        gr.Number(value=0, minimum=0, precision=0, label="Seed"),
        gr.Checkbox(label="All strengths from 0 to 1"),
    ],
    outputs=gr.Gallery(label="Pictures", columns=5),
    title="imprompt",
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.queue(default_concurrency_limit=1).launch()  # One at a time: all requests share one pipeline.
