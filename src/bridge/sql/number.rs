//! Comparing a column with an exact number that it may not be able to hold: what the comparison means in numbers
//! that it can, so that no database has to round.

use crate::query::filter::Comparison;
use crate::query::numeral::Numeral;

/// What a comparison of a column that is not null comes to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Fitted {
    /// It holds for no value.
    Never,
    /// It holds for every value.
    Always,
    /// It is this one.
    Compare(Comparison, Numeral),
}

/// Fits a number to a column of at most so many digits before and after the point.
pub(super) fn fit(op: Comparison, number: &Numeral, before: u64, after: u32) -> Fitted {
    use Comparison::{Eq, Gt, Gte, Lt, Lte, Ne};
    if number.integer_digits() > before {
        return beyond(op, number.is_negative());
    }
    if number.fraction_digits() <= u64::from(after) {
        return Fitted::Compare(op, number.clone());
    }
    let below = || number.toward(after, false);
    match op {
        Eq => Fitted::Never,
        Ne => Fitted::Always,
        // Between two neighbours: what is above it is above the lower one.
        Gt | Gte => Fitted::Compare(Gt, below()),
        Lt | Lte => Fitted::Compare(Lte, below()),
    }
}

/// The comparison with a number that is greater, or less, than all that the column can hold.
pub(super) fn beyond(op: Comparison, negative: bool) -> Fitted {
    use Comparison::{Eq, Gt, Gte, Lt, Lte, Ne};
    match (op, negative) {
        (Eq, _) => Fitted::Never,
        (Ne, _) => Fitted::Always,
        (Gt | Gte, true) | (Lt | Lte, false) => Fitted::Always,
        (Gt | Gte, false) | (Lt | Lte, true) => Fitted::Never,
    }
}

/// Whether a column of singles that shows this number holds exactly `single`.
pub(super) fn is_single(number: &Numeral, single: f32) -> bool {
    single.is_finite()
        && (Numeral::parse(&single.to_string()).as_ref() == Some(number)
            || Numeral::parse(&f64::from(single).to_string()).as_ref() == Some(number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holds(op: Comparison, left: &Numeral, right: &Numeral) -> bool {
        match op {
            Comparison::Eq => left == right,
            Comparison::Ne => left != right,
            Comparison::Gt => left > right,
            Comparison::Gte => left >= right,
            Comparison::Lt => left < right,
            Comparison::Lte => left <= right,
        }
    }

    proptest! {
        #[test]
        fn a_fitted_comparison_decides_like_the_original(
            value in -9_999_i64..=9_999, literal in -200_000_000_i64..200_000_000, scale in 0_u32..6, op in 0_usize..6,
        ) {
            // A column of two digits before and two after the point.
            let value = Numeral::parse(&format!("{value}e-2")).unwrap();
            let literal = Numeral::parse(&format!("{literal}e-{scale}")).unwrap();
            let op = Comparison::ALL[op];
            let fitted = match fit(op, &literal, 2, 2) {
                Fitted::Never => false,
                Fitted::Always => true,
                Fitted::Compare(op, literal) => {
                    prop_assert!(literal.integer_digits() <= 2 || literal == Numeral::parse("-100").unwrap());
                    prop_assert!(literal.fraction_digits() <= 2);
                    holds(op, &value, &literal)
                }
            };
            prop_assert_eq!(fitted, holds(op, &value, &literal));
        }
    }
}
