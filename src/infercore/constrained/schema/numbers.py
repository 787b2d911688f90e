"""Numbers between bounds, and multiples, as states over their digits.

A state is the digits so far, but two prefixes that can be continued to the same numbers share one: what counts is, for
each number of digits that may follow, whether all continuations are inside the bounds, none, or some (only then the
prefix itself matters). So 1..10**15 takes some 50 states. Bounded or divided numbers have no exponent; plain ones do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

from infercore.constrained.machine import Machine

Multiples = tuple[tuple[Fraction, bool], ...]
"""Divisors, and whether the number must be a multiple (True) or must not."""


@dataclass(frozen=True, slots=True)
class NumberRange:
    """Numbers from `low` to `high` (None: unbounded; strict: the bound itself is out), with divisors."""

    low: Fraction | None = None
    low_strict: bool = False
    high: Fraction | None = None
    high_strict: bool = False
    multiples: Multiples = ()

    def contains(self, value: Fraction) -> bool:
        if self.low is not None and (value < self.low or (value == self.low and self.low_strict)):
            return False
        if self.high is not None and (value > self.high or (value == self.high and self.high_strict)):
            return False
        return all((value % divisor == 0) == holds for divisor, holds in self.multiples)

    def is_empty(self) -> bool:
        """Whether no number is inside, as far as bounds and whole divisors tell."""
        low, high = self.low, self.high
        if low is not None and high is not None:
            if low > high or (low == high and not self.contains(low)):
                return True
            positive = [divisor for divisor, holds in self.multiples if holds]
            if positive:
                step = max(positive)
                if (high - low) / step < 64:
                    value = ceil(low / step) * step
                    while value <= high:
                        if self.contains(value):
                            return False
                        value += step
                    return True
        return any((divisor, False) in self.multiples for divisor, holds in self.multiples if holds)


INTEGERS = NumberRange(multiples=((Fraction(1), True),))


class NumberStates:
    """States for numbers, in one machine. `ret` is the state behind every number."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.ret = machine.ret()
        self._magnitudes: dict[object, int] = {}
        self._plain: dict[bool, int] = {}

    def state(self, numbers: NumberRange) -> int:
        """State that reads one number of this range and returns."""
        if numbers == NumberRange():
            return self._unbounded()
        if numbers == INTEGERS:
            return self._integer()
        low, high = numbers.low, numbers.high
        options = []
        if high is None or high > 0 or (high == 0 and not numbers.high_strict):
            positive = low if low is not None and low > 0 else Fraction(0)
            strict = numbers.low_strict if low is not None and low >= 0 else False
            options.append(self._magnitude(NumberRange(positive, strict, high, numbers.high_strict, numbers.multiples)))
        if low is None or low < 0:
            below = -high if high is not None and high < 0 else Fraction(0)
            strict = numbers.high_strict if high is not None and high <= 0 else False
            top = None if low is None else -low
            mirrored = NumberRange(below, strict, top, numbers.low_strict, numbers.multiples)
            options.append(self.machine.literal(b"-", self._magnitude(mirrored)))
        return self.machine.node(free=options)

    def constant(self, value: Fraction) -> int:
        """State that reads `value` in any usual spelling: 1, 1.0, 1e0 are one number."""
        return self.state(NumberRange(value, False, value, False))

    def _unbounded(self) -> int:
        """-?int(.digits)?([eE][+-]?digits)?"""
        if True not in self._plain:
            m, end = self.machine, self.ret
            digits = m.new_states(1)
            m.define(digits, [(48, 57, digits)], [end])
            exponent = m.node([(48, 57, digits)])
            signed = m.node([(43, 43, exponent), (45, 45, exponent)], [exponent])
            fraction = m.new_states(1)
            m.define(fraction, [(48, 57, fraction), (69, 69, signed), (101, 101, signed)], [end])
            point = m.node([(48, 57, fraction)])
            whole_end = m.node([(46, 46, point), (69, 69, signed), (101, 101, signed)], [end])
            whole = m.new_states(1)
            m.define(whole, [(48, 57, whole)], [whole_end])
            first = m.node([(48, 48, whole_end), (49, 57, whole)])
            self._plain[True] = m.node([(45, 45, first)], [first])
        return self._plain[True]

    def _integer(self) -> int:
        """-?int(.00?)?"""
        if False not in self._plain:
            m, end = self.machine, self.ret
            zero = m.node([(48, 48, end)], [end])
            whole_end = m.node([(46, 46, m.literal(b"0", zero))], [end])
            whole = m.new_states(1)
            m.define(whole, [(48, 57, whole)], [whole_end])
            first = m.node([(48, 48, whole_end), (49, 57, whole)])
            self._plain[False] = m.node([(45, 45, first)], [first])
        return self._plain[False]

    def _magnitude(self, numbers: NumberRange) -> int:
        """State that reads digits (no sign) of a number in a range that begins at 0 or above."""
        state = self._magnitudes.get(numbers)
        if state is None:
            state = self._magnitudes[numbers] = self.machine.stub(_Magnitude(self, numbers).expand_first)
        return state


def _whole_or_same(value: Fraction) -> Fraction | int:
    """An int where `value` is whole: ints compare 20 times faster."""
    return value.numerator if value.denominator == 1 else value


class _Magnitude:
    """The automaton of one range of numbers without sign."""

    def __init__(self, owner: NumberStates, numbers: NumberRange) -> None:
        self.machine, self.ret = owner.machine, owner.ret
        self.numbers = numbers
        self.low: Fraction | int = _whole_or_same(numbers.low or Fraction(0))
        self.high: Fraction | int | None = None if numbers.high is None else _whole_or_same(numbers.high)
        self._states: dict[object, int] = {}
        self._known_classes: dict[int, list[int]] = {}
        # value = digits / 10**scale: with `scale` decimals every divisor divides or not, further digits must be zeros
        self.scale = 0
        for divisor, _ in numbers.multiples:
            while (divisor * 10**self.scale).denominator != 1 and self.scale < 40:
                self.scale += 1
        self.moduli = [(int(divisor * 10**self.scale), holds) for divisor, holds in numbers.multiples]
        self.must_divide = any(holds for _, holds in numbers.multiples)
        bound = max(abs(floor(self.low)), 0 if self.high is None else abs(floor(self.high)))
        self.max_digits = len(str(bound)) + 1

    def expand_first(self, state: int) -> None:
        edges = [(48, 48, self._whole(0, leading_zero=True))] if self._can_continue(0, digits_may_follow=False) else []
        edges += self._digit_edges(0, range(1, 10))
        self.machine.define(state, edges)

    def _digit_edges(self, prefix: int, digits: range) -> list[tuple[int, int, int]]:
        edges = []
        for digit in digits:
            value = prefix * 10 + digit
            if self._can_continue(value, digits_may_follow=True):
                edges.append((48 + digit, 48 + digit, self._whole(value, leading_zero=False)))
        return edges

    def _inside(self, low: Fraction | int, high: Fraction | int) -> int:
        """1 if every number of [low, high) is within the bounds, 0 if none, 2 if some may be."""
        numbers = self.numbers
        if high <= self.low or (
            self.high is not None and (low > self.high or (low == self.high and numbers.high_strict))
        ):
            return 0
        above = low > self.low or (low == self.low and not numbers.low_strict)
        below = self.high is None or high <= self.high
        return 1 if above and below else 2

    def _classes(self, value: int) -> list[int]:
        """How the continuations of a whole part by 0, 1, 2, .. further digits stand to the bounds."""
        known = self._known_classes.get(value)
        if known is not None:
            return known
        result = self._known_classes[value] = []
        for more in range(self.max_digits + 1):
            factor = 10**more
            result.append(self._inside(value * factor, (value + 1) * factor))
        return result

    def _can_continue(self, value: int, *, digits_may_follow: bool) -> bool:
        classes = self._classes(value) if digits_may_follow and value else [self._inside(value, value + 1)]
        return any(
            kind == 1 or (kind == 2 and self._some_inside(value * 10**more, (value + 1) * 10**more))
            for more, kind in enumerate(classes)
        )

    def _some_inside(self, low: Fraction | int, high: Fraction | int) -> bool:
        """Whether [low, high) has an allowed number, divisors taken into account where few candidates are left."""
        low = max(low, self.low)
        strict_high = True
        if self.high is not None and self.high < high:
            high, strict_high = self.high, self.numbers.high_strict
        steps = [divisor for divisor, holds in self.numbers.multiples if holds]
        if not steps:
            return low < high or (low == high and not strict_high and self.numbers.contains(Fraction(low)))
        step = max(steps)
        value = ceil(low / step) * step
        for _ in range(200):
            if value > high or (value == high and strict_high):
                return False
            if self.numbers.contains(value):
                return True
            value += step
        return True

    def _remainders(self, value: int) -> tuple[int, ...]:
        return tuple(value * 10**self.scale % modulus for modulus, _ in self.moduli)

    def _whole(self, value: int, *, leading_zero: bool) -> int:
        classes = self._classes(value) if not leading_zero else [self._inside(value, value + 1)]
        exact = value if 2 in classes else None
        key = ("whole", tuple(classes), exact, self._remainders(value), leading_zero, self._tight(value))
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = self.machine.stub(self._expand_whole(value, leading_zero))
        return state

    def _tight(self, value: int) -> tuple[bool, bool]:
        return floor(self.low) == value, self.high is not None and floor(self.high) == value

    def _expand_whole(self, value: int, leading_zero: bool) -> Callable[[int], None]:
        def expand(state: int) -> None:
            edges = [] if leading_zero else self._digit_edges(value, range(10))
            free = [self.ret] if self.numbers.contains(Fraction(value)) else []
            point = self._fraction(Fraction(value), 0, first=True)
            if point:
                edges.append((46, 46, point))
            self.machine.define(state, edges, free)

        return expand

    def _fraction(self, value: Fraction, places: int, *, first: bool = False) -> int:
        """State after `places` decimals; 0 where no decimal may follow and this is no number either."""
        unit = Fraction(1, 10**places)
        kind = self._inside(value, value + unit)
        if kind == 0:
            return 0
        zeros_only = self.must_divide and places >= self.scale
        if zeros_only:
            if not self.numbers.contains(value) or places > self.scale + 2:
                return 0  # a model must not be able to go on with zeros for ever
            key: object = ("zeros", places, first)
        else:
            rest = tuple(floor(value * 10**self.scale) % modulus for modulus, _ in self.moduli)
            off = any(value * 10**self.scale % 1 != 0 for _ in self.moduli[:1])
            exact_value = value if kind == 2 else None
            key = ("fraction", exact_value, rest, off, min(places, self.scale), kind == 2 and places, first)
            if kind == 2 and not self._some_inside(value, value + unit) and not self.numbers.contains(value):
                return 0
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = self.machine.stub(self._expand_fraction(value, places, zeros_only, first))
        return state

    def _expand_fraction(self, value: Fraction, places: int, zeros_only: bool, first: bool) -> Callable[[int], None]:
        def expand(state: int) -> None:
            free = [self.ret] if not first and self.numbers.contains(value) else []
            edges = []
            for digit in range(1 if zeros_only else 10):
                target = self._fraction(value + Fraction(digit, 10 ** (places + 1)), places + 1)
                if target:
                    edges.append((48 + digit, 48 + digit, target))
            self.machine.define(state, edges, free)

        return expand
