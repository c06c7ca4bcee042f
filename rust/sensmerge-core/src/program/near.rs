//! A step from the base towards one model, of a bounded length in every entry.

use super::block::{Block, Parts};
use super::{Combine, CombineOn, Join, Subject};
use crate::dtype::Real;
use crate::kernel::near::near;

/// The task vector of one model, with entries above a bound cut down to it.
#[derive(Debug)]
pub(crate) struct Near {
    /// The parameter that holds the bound.
    pub(crate) t: &'static str,
}

impl Combine for Near {}

impl<T: Real> CombineOn<T> for Near {
    fn bind(&self, subject: &Subject, _: &[f64]) -> Box<dyn Join<T>> {
        Box::new(Bounded { t: T::from_f64(subject.number(self.t)) })
    }
}

struct Bounded<T> {
    t: T,
}

impl<T: Real> Join<T> for Bounded<T> {
    fn join(&self, block: &mut Block<T>) {
        let Parts { rows, out, .. } = block.parts();
        near(&rows[..out.len()], self.t, out);
    }
}
