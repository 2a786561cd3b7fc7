"""Numbers read well."""

from elder.report.words import compact, duration, number, plus_minus, size


def test_numbers_read_well():
    assert [number(x) for x in (None, True, 45.698, 1234.5, 131072, float("inf"))] == [
        "–",
        "yes",
        "45.70",
        "1,234",
        "131,072",
        "∞",
    ]
    assert [number(x, 2) for x in (3e-4, 1e-3, 2e-5)] == ["0.0003", "0.001", "2e-05"]
    assert [compact(x) for x in (5_730_000, 412, 131_072.0)] == [
        "5.73 M",
        "412",
        "131 k",
    ]
    assert [
        plus_minus(48.412, 0.623),
        plus_minus(0.81234, 0.0123),
        plus_minus(7.0, None),
    ] == [
        "48.41 ± 0.62",
        "0.812 ± 0.012",
        "7.000",
    ]
    assert [
        size(812),
        size(9_012_345),
        duration(4.21),
        duration(214.6),
        duration(7320),
    ] == [
        "812 B",
        "8.59 MiB",
        "4.2 s",
        "3 min 35 s",
        "2 h 2 min",
    ]
