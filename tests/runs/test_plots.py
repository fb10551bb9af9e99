import pytest

from rlhf.runs.plots import saved_figure


def test_a_figure_is_saved_and_closed(tmp_path):
    import matplotlib.pyplot as plt

    with saved_figure(tmp_path / "a.png", 1, 2, figsize=(3, 2)) as (figure, axes):
        axes[0].plot([0, 1], [0, 1])
        assert plt.fignum_exists(figure.number) and figure.get_size_inches().tolist() == [3, 2]
    assert not plt.fignum_exists(figure.number)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_an_error_while_drawing_leaves_no_file_and_no_open_figure(tmp_path):
    import matplotlib.pyplot as plt

    with pytest.raises(ZeroDivisionError), saved_figure(tmp_path / "a.png") as (figure, axis):
        axis.plot([1 / 0])
    assert not plt.fignum_exists(figure.number) and not (tmp_path / "a.png").exists()
