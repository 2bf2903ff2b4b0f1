"""Every convolution works in channels_last, in the run's arithmetic, on the card; forward and backward.

Twice: in whole runs on the stub, where torch's real host code chooses the layouts; and on fake tensors, among which
torch refuses to mix devices.
"""

import fakes
import pytest
from checks import complaints_about_layouts
from results import ask, marks

pytestmark = marks

FAKES = [name for name in fakes.CASES if not name.startswith("fault")]
NOT_CHANNELS_LAST = {
    # Fake tensors know the layout of a batch norm's gradient less well than the real code: see the whole run.
    "bf16 resnet18": ("aten::convolution_backward grad",),
    # torch's group norm on CUDA gives NCHW whatever it gets, so the next convolution has to change the layout.
    "bf16 gn-ws": ("aten::convolution input", "aten::convolution_backward input", "aten::convolution_backward grad"),
}


@pytest.mark.parametrize("name", ["layouts resnet9", "layouts resnet18 plain"])
def test_convolutions_of_a_run(name: str) -> None:
    run = ask("runs", name)
    assert complaints_about_layouts(run["layouts"], "bfloat16") == []
    assert {tensor["what"].split()[0] for tensor in run["layouts"]} == {"aten::convolution",
                                                                         "aten::convolution_backward"}  # fmt: skip


@pytest.mark.parametrize("name", FAKES)
def test_convolutions_of_fake_tensors(name: str) -> None:
    told = ask("fakes", name)
    assert complaints_about_layouts(told["layouts"], told["dtype"], NOT_CHANNELS_LAST.get(name, ())) == []
    assert told["weights"] == ["cuda"]
    sizes = {tensor["shape"][-1] for tensor in told["layouts"] if tensor["what"] == "aten::convolution input"}
    assert set(fakes.SIZES) <= sizes
