//! Merge methods as data.
//!
//! A method is a composition of kernels: how a task vector is made sparse (drop, trim, rescale),
//! how the experts agree on a sign (consensus), and what their weighted sum is divided by. Each
//! method's file states its idea, its formula and its source, and composes those parts for both
//! published semantics; nothing else in the crate asks for a method by name.

mod dare_linear;
mod dare_ties;
mod linear;
mod task_arithmetic;
mod ties;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
pub use crate::kernel::disjoint::{Agreement, Divisor};

/// A sum of weights below this does not divide: task vectors are then summed as they are, and a mean
/// of parameters is refused.
pub const SMALLEST_DIVISOR: f64 = 1e-8;

/// The methods by the names that recipes use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodName {
    /// Weighted mean of parameters (Wortsman et al., 2022).
    Linear,
    /// Weighted sum of task vectors (Ilharco et al., 2023).
    TaskArithmetic,
    /// Trim, elect sign, disjoint mean (Yadav et al., 2023).
    Ties,
    /// Drop and rescale, then task arithmetic (Yu et al., 2024).
    DareLinear,
    /// Drop and rescale, then sign election (Yu et al., 2024).
    DareTies,
}

/// Whose reading of TIES and DARE is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Semantics {
    /// What mergekit computes for the same recipe.
    #[default]
    Mergekit,
    /// What the papers' own code computes.
    Original,
}

/// The switches of a recipe that change a method's composition; `None` takes its default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Switches {
    /// Divide the weighted sum.
    pub normalize: Option<bool>,
    /// Scale the survivors of sparsification up.
    pub rescale: Option<bool>,
}

/// What is combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// The experts' parameters themselves.
    Parameters,
    /// Their differences from the base, added back to it after scaling by lambda.
    TaskVectors,
}

/// What magnitude trimming is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Exactly `max(1, floor(density * n))` entries of each tensor stay; ties go to the lowest index.
    Tensor,
    /// One threshold for an expert's whole task vector; every entry at or above it stays.
    Model,
}

/// Which of an expert's two densities a trim obeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrimDensity {
    /// `density`.
    Density,
    /// `ties_density`, where `density` belongs to the random drop.
    TiesDensity,
}

/// Magnitude trimming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trim {
    /// What it is relative to.
    pub scope: Scope,
    /// Which density it obeys.
    pub density: TrimDensity,
}

/// What the survivors of sparsification are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rescale {
    /// 1.
    None,
    /// 1 / density.
    InverseDensity,
    /// The factor that restores the L1 norm of the tensor's task vector.
    PreserveL1,
}

/// The sign of an entry whose election ends in a draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroSign {
    /// Always +.
    Positive,
    /// The sign that the model-wide sum of elected signs has.
    Majority,
}

/// Sign election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consensus {
    /// Whether votes are weighted, and with them what counts as agreeing.
    pub agreement: Agreement,
    /// Who wins a draw.
    pub zero_sign: ZeroSign,
}

/// A method, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// What is combined.
    pub operand: Operand,
    /// Whether entries are dropped at random with probability `1 - density`.
    pub drop: bool,
    /// How small entries are trimmed, after the drop.
    pub trim: Option<Trim>,
    /// What survivors are multiplied by.
    pub rescale: Rescale,
    /// How signs are elected; none: every entry takes part.
    pub consensus: Option<Consensus>,
    /// What the weighted sum is divided by.
    pub divisor: Divisor,
}

impl Method {
    /// Compose the method that `name` stands for.
    ///
    /// # Errors
    /// [`Error::Setting`] where a switch has no meaning for the method.
    pub fn new(name: MethodName, semantics: Semantics, switches: Switches) -> Result<Self> {
        match name {
            MethodName::Linear => linear::compose(switches),
            MethodName::TaskArithmetic => task_arithmetic::compose(switches),
            MethodName::Ties => ties::compose(semantics, switches),
            MethodName::DareLinear => Ok(dare_linear::compose(semantics, switches)),
            MethodName::DareTies => Ok(dare_ties::compose(semantics, switches)),
        }
    }
}

/// `Σ w_i` where `normalize` is on, 1 otherwise.
fn weights_divisor(normalize: bool) -> Divisor {
    if normalize { Divisor::Weights } else { Divisor::One }
}

/// Refuse `rescale: true` for a method that drops nothing.
fn refuse_rescale(switches: Switches, method: &str) -> Result<()> {
    if switches.rescale == Some(true) {
        return Err(Error::setting(
            "parameters.rescale",
            format!("{method} drops no entries, so there is nothing to rescale; remove the key"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [MethodName; 5] = [
        MethodName::Linear,
        MethodName::TaskArithmetic,
        MethodName::Ties,
        MethodName::DareLinear,
        MethodName::DareTies,
    ];

    fn compose(name: MethodName, semantics: Semantics) -> Result<Method> {
        Method::new(name, semantics, Switches::default())
    }

    #[test]
    fn only_ties_and_dare_differ_between_semantics() -> Result<()> {
        for name in ALL {
            let same = compose(name, Semantics::Mergekit)? == compose(name, Semantics::Original)?;
            let plain = matches!(name, MethodName::Linear | MethodName::TaskArithmetic);
            assert_eq!(same, plain, "{name:?}");
        }
        Ok(())
    }

    #[test]
    fn defaults_are_those_of_the_two_publications() -> Result<()> {
        let ties = compose(MethodName::Ties, Semantics::Mergekit)?;
        assert_eq!(ties.divisor, Divisor::Weights);
        assert_eq!(ties.rescale, Rescale::None);
        let ties = compose(MethodName::Ties, Semantics::Original)?;
        assert_eq!(ties.divisor, Divisor::Count);
        let dare = compose(MethodName::DareTies, Semantics::Mergekit)?;
        assert_eq!((dare.trim, dare.divisor), (None, Divisor::One));
        assert_eq!(dare.rescale, Rescale::PreserveL1);
        let dare = compose(MethodName::DareTies, Semantics::Original)?;
        assert_eq!(dare.trim.map(|trim| trim.density), Some(TrimDensity::TiesDensity));
        assert_eq!(dare.rescale, Rescale::InverseDensity);
        Ok(())
    }

    #[test]
    fn a_rescale_without_a_drop_is_refused() {
        let switches = Switches { rescale: Some(true), ..Switches::default() };
        for (name, semantics) in [
            (MethodName::Linear, Semantics::Mergekit),
            (MethodName::TaskArithmetic, Semantics::Mergekit),
            (MethodName::Ties, Semantics::Original),
        ] {
            let refused = Method::new(name, semantics, switches);
            assert!(refused.is_err_and(|error| error.to_string().contains("rescale")));
        }
    }
}
