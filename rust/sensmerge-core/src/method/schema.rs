//! What a method says of itself: the models it takes, its parameters with their ranges and
//! defaults, and what can be done with its weights. Recipes are checked against it, and the docs'
//! table, the schema for editors and the spaces of searches are made from it.

use serde::Serialize;

/// A method's description, for one of the two semantics.
#[derive(Clone, Debug, Serialize)]
pub struct Schema {
    /// The name that recipes use.
    pub name: &'static str,
    /// The name that people use.
    pub title: &'static str,
    /// What it does, in one sentence.
    pub summary: &'static str,
    /// Where it was published.
    pub source: &'static str,
    /// The part that the base plays.
    pub base: Base,
    /// How many models are merged, the base left out where it is not one of them.
    pub models: Count,
    /// Its parameters.
    pub parameters: Vec<Parameter>,
    /// Whether its weights may be multiplied by sensitivity's coefficients.
    pub coefficients: bool,
    /// Whether its weights can be learned by gradient descent.
    pub learnable: bool,
}

impl Schema {
    /// The parameter of this name.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|parameter| parameter.name == name)
    }
}

/// The part that the base plays in a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// Task vectors are differences from it, and the merge adds to it.
    Needed,
    /// With a base, task vectors are merged; without, the models themselves.
    Optional,
    /// It is the first of the models that are merged, where the recipe names one.
    Merged,
    /// None: a base that is not listed among the models is not merged.
    Unused,
}

/// How many models a method takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// At least.
    pub least: usize,
    /// At most; `None` has no bound.
    pub most: Option<usize>,
}

impl Count {
    /// This many or more.
    #[must_use]
    pub fn at_least(least: usize) -> Self {
        Self { least, most: None }
    }

    /// Just this many.
    #[must_use]
    pub fn exactly(count: usize) -> Self {
        Self { least: count, most: Some(count) }
    }

    /// Whether `count` models are few and many enough.
    #[must_use]
    pub fn admits(&self, count: usize) -> bool {
        count >= self.least && self.most.is_none_or(|most| count <= most)
    }
}

/// Whose a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// Each model has its own; one under the recipe's `parameters` is for all of them.
    Model,
    /// The merge has one.
    Merge,
}

/// A parameter of a method.
#[derive(Clone, Debug, Serialize)]
pub struct Parameter {
    /// The name that recipes use.
    pub name: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Whose it is.
    pub owner: Owner,
    /// What values it takes.
    #[serde(flatten)]
    pub kind: Kind,
}

/// What values a parameter takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// A number, which may differ from tensor to tensor.
    Number {
        /// Its value where a recipe is silent; `None` has to be given.
        default: Option<f64>,
        /// Its bounds.
        range: Range,
        /// Whether it may differ from tensor to tensor.
        by_tensor: bool,
        /// Where a search looks for it; `None` is not searched for.
        search: Option<Search>,
    },
    /// On or off, for the whole merge.
    Switch {
        /// Its value where a recipe is silent.
        default: bool,
    },
}

/// Bounds of a number, which is finite in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Range {
    /// The number is larger than this.
    pub above: Option<f64>,
    /// The number is this or larger.
    pub least: Option<f64>,
    /// The number is this or smaller.
    pub most: Option<f64>,
}

impl Range {
    /// Whether `number` lies within the bounds.
    #[must_use]
    pub fn admits(&self, number: f64) -> bool {
        number.is_finite()
            && self.above.is_none_or(|bound| number > bound)
            && self.least.is_none_or(|bound| number >= bound)
            && self.most.is_none_or(|bound| number <= bound)
    }

    /// The bounds in words, such as `above 0 and at most 1`.
    #[must_use]
    pub fn words(&self) -> String {
        let above = self.above.map(|bound| format!("above {bound}"));
        let least = self.least.map(|bound| format!("at least {bound}"));
        let most = self.most.map(|bound| format!("at most {bound}"));
        let bounds: Vec<String> = [above, least, most].into_iter().flatten().collect();
        if bounds.is_empty() { "a finite number".into() } else { bounds.join(" and ") }
    }
}

/// Where a search looks for a number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Search {
    /// From here; for λ it is divided by the number of models.
    pub low: f64,
    /// To here.
    pub high: f64,
    /// In equal ratios rather than equal steps.
    pub log: bool,
    /// Whether `low` is divided by the number of models.
    pub low_is_shared: bool,
    /// Where it starts if the recipe is silent; `None` starts at the default.
    pub start: Option<f64>,
}

impl Parameter {
    /// The weight of a model's part in a sum.
    #[must_use]
    pub fn weight() -> Self {
        Self {
            name: "weight",
            summary: "how strongly the model takes part",
            owner: Owner::Model,
            kind: Kind::Number {
                default: Some(1.0),
                range: Range::default(),
                by_tensor: true,
                search: None,
            },
        }
    }

    /// The scale of the merged task vector.
    #[must_use]
    pub fn lambda() -> Self {
        Self {
            name: "lambda",
            summary: "scale of the merged task vector",
            owner: Owner::Merge,
            kind: Kind::Number {
                default: Some(1.0),
                range: Range::default(),
                by_tensor: true,
                search: Some(Search {
                    low: 0.25,
                    high: 1.5,
                    log: true,
                    low_is_shared: true,
                    start: None,
                }),
            },
        }
    }

    /// A fraction of entries to keep. `start` is where searches start, `by_tensor` whether it may
    /// differ from tensor to tensor.
    #[must_use]
    pub fn density(
        name: &'static str,
        summary: &'static str,
        by_tensor: bool,
        start: Option<f64>,
    ) -> Self {
        let search = Search { low: 0.1, high: 1.0, log: false, low_is_shared: false, start };
        Self {
            name,
            summary,
            owner: Owner::Model,
            kind: Kind::Number {
                default: Some(1.0),
                range: Range { above: Some(0.0), least: None, most: Some(1.0) },
                by_tensor,
                search: start.is_some().then_some(search),
            },
        }
    }

    /// A switch for the whole merge.
    #[must_use]
    pub fn switch(name: &'static str, summary: &'static str, default: bool) -> Self {
        Self { name, summary, owner: Owner::Merge, kind: Kind::Switch { default } }
    }

    /// Whether a weighted sum is divided.
    #[must_use]
    pub fn normalize(default: bool) -> Self {
        Self::switch("normalize", "divide the weighted sum by the sum of the weights", default)
    }

    /// Whether the survivors of sparsification are scaled up.
    #[must_use]
    pub fn rescale(default: bool) -> Self {
        Self::switch("rescale", "scale up what sparsification leaves", default)
    }
}
