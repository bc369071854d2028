"""Splits are kept, reproducible, per class, and never between equal contents."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelmill.data.splits import (
    TEST,
    TRAIN,
    UNDECLARED,
    VAL,
    assign,
    assign_classes,
)

ITEMS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(-1, 2), st.integers(0, 40)),
    max_size=120,
)
FREE = st.lists(
    st.tuples(
        st.integers(0, 4), st.just(UNDECLARED), st.integers(0, 2**64 - 1)
    ),
    max_size=120,
)


def columns(items):
    labels, declared, prints = (
        zip(*items, strict=True) if items else ((), (), ())
    )
    return (
        np.array(labels, np.int32),
        np.array(declared, np.int8),
        np.array(prints, np.uint64),
    )


@given(ITEMS, st.randoms())
def test_order_does_not_matter(items, random):
    order = list(range(len(items)))
    random.shuffle(order)
    straight = assign(*columns(items))
    shuffled = assign(*columns([items[at] for at in order]))
    assert shuffled.tolist() == [straight[at] for at in order]


@given(ITEMS)
def test_declared_val_and_test_are_kept_and_the_rest_trains(items):
    labels, declared, prints = columns(items)
    splits = assign(labels, declared, prints)
    assert ((splits >= TRAIN) & (splits <= TEST)).all()
    assert (splits[declared == TEST] == TEST).all()
    if (declared == VAL).any() and not (declared == TEST).any():
        assert ((splits == TEST) == (declared == VAL)).all()
    elif (declared == VAL).any():
        assert (
            splits == np.where(declared == UNDECLARED, TRAIN, declared)
        ).all()
    elif (declared != UNDECLARED).any():
        assert (splits[declared <= TRAIN] != TEST).all()


@given(
    st.one_of(
        FREE,
        ITEMS.map(
            lambda items: [
                (label, UNDECLARED, content) for label, _, content in items
            ]
        ),
    )
)
def test_undeclared_items_are_stratified_and_never_straddle(items):
    labels, declared, prints = columns(items)
    splits = assign(labels, declared, prints)
    for label in set(labels.tolist()):
        mine, contents = splits[labels == label], prints[labels == label]
        for content in set(contents.tolist()):
            assert len(set(mine[contents == content].tolist())) == 1
        distinct = len(set(contents.tolist()))
        if distinct >= 3:
            assert set(mine.tolist()) == {TRAIN, VAL, TEST}
            held = {
                content
                for content, split in zip(
                    contents.tolist(), mine.tolist(), strict=True
                )
                if split == TEST
            }
            assert abs(len(held) - distinct / 10) < 1
        else:
            assert set(mine.tolist()) == {TRAIN}


def test_shares_are_eighty_ten_ten():
    prints = np.random.default_rng(0).integers(0, 2**63, 3000).astype(np.uint64)
    labels = np.repeat([0, 1], [2000, 1000]).astype(np.int32)
    splits = assign(labels, np.full(3000, UNDECLARED, np.int8), prints)
    assert np.bincount(splits).tolist() == [2400, 300, 300]
    assert np.bincount(splits[labels == 1]).tolist() == [800, 100, 100]


def test_a_tenth_of_train_becomes_val_when_only_train_and_test_are_declared():
    declared = np.repeat([TRAIN, TEST], [100, 20]).astype(np.int8)
    splits = assign(
        np.zeros(120, np.int32), declared, np.arange(120, dtype=np.uint64)
    )
    assert np.bincount(splits).tolist() == [90, 10, 20]


def test_a_val_without_a_test_measures_and_a_tenth_of_train_becomes_val():
    declared = np.repeat([TRAIN, VAL], [100, 20]).astype(np.int8)
    splits = assign(
        np.zeros(120, np.int32), declared, np.arange(120, dtype=np.uint64)
    )
    assert np.bincount(splits).tolist() == [90, 10, 20]
    assert (splits[100:] == TEST).all()


def by_class(names, items=6, declared=UNDECLARED):
    """The splits that each class of `items` items has, by name."""
    labels = np.repeat(np.arange(len(names)), items).astype(np.int32)
    prints = (
        np.random.default_rng(0)
        .integers(0, 2**63, len(labels))
        .astype(np.uint64)
    )
    splits = assign_classes(
        names, labels, np.full(len(labels), declared, np.int8), prints
    )
    return {
        name: set(splits[labels == number].tolist())
        for number, name in enumerate(names)
    }


def test_whole_classes_are_held_out_the_same_ones_in_any_order():
    names = [f"person {number}" for number in range(40)]
    found = by_class(names)
    assert by_class(names[::-1]) == found
    assert all(len(splits) == 1 for splits in found.values())
    count = [
        sum(splits == {split} for splits in found.values())
        for split in (TRAIN, VAL, TEST)
    ]
    assert count == [29, 3, 8]


def test_classes_in_folders_are_held_out_by_folders():
    found = by_class(
        [
            f"{alphabet}/{number}"
            for alphabet in ("Greek", "Latin", "Korean", "Thai")
            for number in range(9)
        ]
    )
    tested = {
        name.partition("/")[0]
        for name, splits in found.items()
        if splits == {TEST}
    }
    assert len(tested) == 1
    assert all(
        splits == {TEST}
        for name, splits in found.items()
        if name.partition("/")[0] in tested
    )
    assert sum(splits == {VAL} for splits in found.values()) == 3


def test_too_few_classes_or_declared_splits_are_split_by_items():
    assert by_class(["cat", "dog"]) == {
        "cat": {TRAIN, VAL, TEST},
        "dog": {TRAIN, VAL, TEST},
    }
    assert by_class([str(number) for number in range(20)], declared=TEST) == {
        str(n): {TEST} for n in range(20)
    }
