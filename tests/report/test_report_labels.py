from hypothesis import given
from hypothesis import strategies as st

from rekindle.report.labels import spread

targets = st.lists(st.floats(-500, 500), min_size=1, max_size=20)


@given(targets, st.floats(1, 30))
def test_labels_do_not_overlap_stay_inside_and_keep_their_order(targets, height):
    centres = spread(targets, height, -300, 300)
    if centres is None:
        assert len(targets) * height > 600
        return
    ranked = sorted(range(len(targets)), key=lambda i: targets[i])
    placed = [centres[i] for i in ranked]
    assert all(b - a >= height - 1e-6 for a, b in zip(placed, placed[1:]))
    assert placed[0] >= -300 + height / 2 - 1e-6
    assert placed[-1] <= 300 - height / 2 + 1e-6


def test_labels_with_room_are_not_moved():
    assert spread([100, 10, 50], 20, 0, 200) == [100, 10, 50]


def test_two_labels_at_one_place_share_the_move():
    assert spread([50, 50], 20, 0, 200) == [40, 60]


def test_labels_that_do_not_fit_are_refused():
    assert spread([1, 2, 3], 20, 0, 50) is None
