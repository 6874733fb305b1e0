//! Exact decimal numbers, as a request writes them: compared and cut without a double's rounding, and without ever
//! taking memory in proportion to an exponent.

use std::cmp::Ordering;

use serde_json::Value;

/// Exponents beyond this are taken for this: no database has numbers that large or that small.
const MAX_EXPONENT: i64 = 1_000_000;

/// A number: its digits times a power of ten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numeral {
    negative: bool,
    /// Without zeros at either end; none: zero, which is never negative.
    digits: String,
    exponent: i64,
}

impl Numeral {
    /// Reads a number in JSON's notation; `+1`, `007`, `.5` and `5.` are numbers too.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, unsigned) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, parse_exponent(exponent)?),
            None => (unsigned, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = [whole, fraction].concat();
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let scale = i64::try_from(fraction.len()).unwrap_or(MAX_EXPONENT);
        Some(Self::new(negative, &digits, exponent - scale))
    }

    /// Reads a JSON number, or a string that is one.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => Self::parse(&number.to_string()),
            Value::String(text) => Self::parse(text),
            _ => None,
        }
    }

    fn new(negative: bool, digits: &str, exponent: i64) -> Self {
        let digits = digits.trim_start_matches('0');
        let significant = digits.trim_end_matches('0');
        let zeros = i64::try_from(digits.len() - significant.len()).unwrap_or(0);
        match significant.is_empty() {
            true => Self {
                negative: false,
                digits: String::new(),
                exponent: 0,
            },
            false => Self {
                negative,
                digits: significant.to_owned(),
                exponent: exponent + zeros,
            },
        }
    }

    /// Whether it is less than zero.
    pub fn is_negative(&self) -> bool {
        self.negative
    }

    /// Whether it has no fraction.
    pub fn is_integer(&self) -> bool {
        self.exponent >= 0
    }

    /// How many digits there are before the point; 0 below one.
    pub fn integer_digits(&self) -> u64 {
        u64::try_from(self.magnitude()).unwrap_or(0)
    }

    /// How many digits there are after the point.
    pub fn fraction_digits(&self) -> u64 {
        u64::try_from(-self.exponent).unwrap_or(0)
    }

    /// Where the point stands, from the first digit.
    fn magnitude(&self) -> i64 {
        match self.digits.is_empty() {
            true => 0,
            false => i64::try_from(self.digits.len()).unwrap_or(i64::MAX) + self.exponent,
        }
    }

    /// The integer that it is.
    pub fn as_i64(&self) -> Option<i64> {
        self.plain(20).filter(|_| self.is_integer())?.parse().ok()
    }

    /// The integer that it is, if it is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        self.plain(20).filter(|_| self.is_integer())?.parse().ok()
    }

    /// In plain notation, without an exponent; `None` if that has more than `max` bytes.
    pub fn plain(&self, max: usize) -> Option<String> {
        let (before, after) = (self.integer_digits().max(1), self.fraction_digits());
        let length = u64::from(self.negative) + before + after + u64::from(after > 0);
        if length > max as u64 {
            return None;
        }
        let (before, after) = (usize::try_from(before).ok()?, usize::try_from(after).ok()?);
        let mut text = String::with_capacity(before + after + 2);
        if self.negative {
            text.push('-');
        }
        // All digits, with the zeros that stand between them and the point.
        let mut all = "0".repeat((before + after).saturating_sub(self.digits.len()));
        match self.exponent >= 0 {
            true => all.insert_str(0, &self.digits),
            false => all.push_str(&self.digits),
        }
        text.push_str(&all[..before]);
        if after > 0 {
            text.push('.');
            text.push_str(&all[before..]);
        }
        Some(text)
    }

    /// The nearest number of so many digits after the point that is not greater, or with `up` not less.
    #[must_use]
    pub fn toward(&self, fraction_digits: u32, up: bool) -> Self {
        let cut = -i64::from(fraction_digits);
        if self.exponent >= cut {
            return self.clone();
        }
        let dropped = usize::try_from(cut - self.exponent).unwrap_or(usize::MAX);
        let kept = &self.digits[..self.digits.len().saturating_sub(dropped)];
        let away = up != self.negative;
        let digits = if away {
            increment(kept)
        } else {
            kept.to_owned()
        };
        Self::new(self.negative, &digits, cut)
    }

    /// The nearest double; infinite beyond the largest.
    pub fn nearest_f64(&self) -> f64 {
        self.scientific().parse().unwrap_or(f64::NAN)
    }

    /// The nearest single; infinite beyond the largest.
    pub fn nearest_f32(&self) -> f32 {
        self.scientific().parse().unwrap_or(f32::NAN)
    }

    /// With an exponent, in as few digits as there are.
    pub fn scientific(&self) -> String {
        let sign = if self.negative { "-" } else { "" };
        let digits = if self.digits.is_empty() {
            "0"
        } else {
            &self.digits
        };
        format!("{sign}{digits}e{}", self.exponent)
    }
}

/// Digits and one more.
fn increment(digits: &str) -> String {
    let mut digits = digits.as_bytes().to_vec();
    for digit in digits.iter_mut().rev() {
        if *digit < b'9' {
            *digit += 1;
            return digits.iter().map(|byte| char::from(*byte)).collect();
        }
        *digit = b'0';
    }
    std::iter::once('1')
        .chain(digits.iter().map(|byte| char::from(*byte)))
        .collect()
}

fn parse_exponent(text: &str) -> Option<i64> {
    let digits = text.trim_start_matches(['+', '-']);
    if digits.is_empty()
        || text.len() - digits.len() > 1
        || !digits.bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let exponent = digits.parse().unwrap_or(MAX_EXPONENT).min(MAX_EXPONENT);
    Some(if text.starts_with('-') {
        -exponent
    } else {
        exponent
    })
}

impl Ord for Numeral {
    fn cmp(&self, other: &Self) -> Ordering {
        let sign = |number: &Self| match (number.digits.is_empty(), number.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        };
        let magnitude = || {
            let point = self.magnitude().cmp(&other.magnitude());
            point.then_with(|| self.digits.cmp(&other.digits))
        };
        sign(self)
            .cmp(&sign(other))
            .then_with(|| match self.negative {
                true => magnitude().reverse(),
                false => magnitude(),
            })
    }
}

impl PartialOrd for Numeral {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(text: &str) -> Numeral {
        Numeral::parse(text).unwrap()
    }

    #[test]
    fn what_is_no_number_is_none() {
        for text in [
            "", "-", ".", "e1", "1e", "1e+-1", "0x1", "1 ", "NaN", "Infinity", "1.2.3", "--1", "١",
        ] {
            assert_eq!(Numeral::parse(text), None, "{text}");
        }
    }

    #[test]
    fn notations_of_one_number_are_equal() {
        for text in ["1.5", "+1.50", "0001.5", "15e-1", "0.15E+1", "0.000015e5"] {
            assert_eq!(number(text), number("1.5"), "{text}");
        }
        assert_eq!(number("-0.0"), number("0"));
        assert_eq!(number("-0").plain(10).unwrap(), "0");
    }

    #[test]
    fn an_absurd_exponent_costs_nothing() {
        let huge = number("1e999999999999999999999");
        assert_eq!(huge.plain(100), None);
        assert!(huge > number("1e400") && huge.nearest_f64().is_infinite());
        assert_eq!(number("1e-99999999999").toward(2, true), number("0.01"));
    }

    proptest! {
        #[test]
        fn numbers_compare_cut_and_print_as_integers_do(a in any::<i64>(), b in any::<i64>(), x in 0_u32..18, y in 0_u32..18, cut in 0_u32..6) {
            let (left, right) = (number(&format!("{a}e-{x}")), number(&format!("{b}e-{y}")));
            let scaled = |value: i64, scale: u32| i128::from(value) * 10_i128.pow(18 - scale);
            prop_assert_eq!(left.cmp(&right), scaled(a, x).cmp(&scaled(b, y)));
            let unit = 10_i128.pow(18 - cut);
            let floor = scaled(a, x).div_euclid(unit);
            prop_assert_eq!(left.toward(cut, false), number(&format!("{floor}e-{cut}")));
            let ceiling = -(-scaled(a, x)).div_euclid(unit);
            prop_assert_eq!(left.toward(cut, true), number(&format!("{ceiling}e-{cut}")));
            prop_assert_eq!(&number(&left.plain(60).unwrap()), &left);
            prop_assert_eq!(number(&a.to_string()).as_i64(), Some(a));
            prop_assert_eq!(left.is_integer(), scaled(a, x) % 10_i128.pow(18) == 0);
        }

        #[test]
        fn the_nearest_float_is_the_one_that_parsing_gives(value in any::<f64>().prop_filter("finite", |v| v.is_finite())) {
            prop_assert_eq!(number(&value.to_string()).nearest_f64(), value);
            let single: f32 = value.to_string().parse().unwrap();
            prop_assert_eq!(number(&value.to_string()).nearest_f32(), single);
        }
    }
}
