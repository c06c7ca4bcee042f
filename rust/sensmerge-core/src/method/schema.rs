//! The description of a method: its models, its parameters with their ranges and defaults, and the
//! uses of its weights. Recipes are checked against it; the table in the documentation, the JSON
//! Schema for editors and the spaces of searches are made from it.

use serde::{Deserialize, Serialize};

/// A method's description, for one of the two semantics.
#[derive(Clone, Debug, Serialize)]
pub struct Schema {
    /// The name that recipes use.
    pub name: &'static str,
    /// The name that people use.
    pub title: &'static str,
    /// A short description.
    pub summary: &'static str,
    /// The publication.
    pub source: &'static str,
    /// The role of the base.
    pub base: Base,
    /// Number of models to merge. The base counts only with [`Base::Merged`].
    pub models: Count,
    /// Its parameters.
    pub parameters: Vec<Parameter>,
    /// Whether its weights may be multiplied by the coefficients of Sens-Merging.
    pub coefficients: bool,
    /// Whether its weights can be learned by gradient descent.
    pub learnable: bool,
    /// What it needs to know of every model beside its weights.
    pub statistic: Option<Statistic>,
}

/// What is measured of a model on samples of its task, tensor by tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// The mean square of the loss's derivative by every entry: the diagonal of the empirical Fisher
    /// information. It has the tensor's shape.
    Fisher,
    /// The mean of `x xᵀ` over the inputs `x` of a linear layer: `[inputs, inputs]`, for matrices of
    /// `[outputs, inputs]`.
    Gram,
}

impl Statistic {
    /// Its shape for a tensor; `None` if such a tensor has none.
    #[must_use]
    pub(crate) fn shape(self, tensor: &[usize]) -> Option<Vec<usize>> {
        match (self, tensor) {
            (Self::Fisher, shape) => Some(shape.to_vec()),
            (Self::Gram, [_, inputs]) => Some(vec![*inputs; 2]),
            (Self::Gram, _) => None,
        }
    }
}

impl Schema {
    /// The parameter of this name.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|parameter| parameter.name == name)
    }
}

/// The role of the base in a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// Task vectors are differences from it, and the merged task vector is added to it.
    Needed,
    /// With a base, task vectors are merged; without one, the models themselves.
    Optional,
    /// The base, if the recipe names one, is the first of the merged models.
    Merged,
    /// The base is merged only if it is listed among the models.
    Unused,
}

/// The number of models that a method can merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The least number.
    pub least: usize,
    /// The greatest number; `None` is no bound.
    pub most: Option<usize>,
}

impl Count {
    /// This many or more.
    #[must_use]
    pub fn at_least(least: usize) -> Self {
        Self { least, most: None }
    }

    /// Exactly this many.
    #[must_use]
    pub fn exactly(count: usize) -> Self {
        Self { least: count, most: Some(count) }
    }

    /// Whether `count` models can be merged.
    #[must_use]
    pub fn admits(&self, count: usize) -> bool {
        count >= self.least && self.most.is_none_or(|most| count <= most)
    }
}

/// The owner of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// Each model has its own value; one under the recipe's `parameters` is for all models.
    Model,
    /// The merge has one value.
    Merge,
}

/// A parameter of a method.
#[derive(Clone, Debug, Serialize)]
pub struct Parameter {
    /// The name that recipes use.
    pub name: &'static str,
    /// A short description.
    pub summary: &'static str,
    /// Its owner.
    pub owner: Owner,
    /// Its values.
    #[serde(flatten)]
    pub kind: Kind,
}

/// The values of a parameter.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// A number.
    Number {
        /// Its value if the recipe gives none; `None` if the recipe must give one.
        default: Option<f64>,
        /// Its bounds.
        range: Range,
        /// Whether it may differ from tensor to tensor.
        by_tensor: bool,
        /// The interval that searches look in; `None` if it is not searched for.
        search: Option<Search>,
    },
    /// On or off, for the whole merge.
    Switch {
        /// Its value if the recipe gives none.
        default: bool,
    },
}

/// Bounds of a number. The number must be finite in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
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

/// The interval in which searches look for a number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// Whether the interval is searched on a logarithmic scale.
    pub log: bool,
    /// Whether the lower end is `low` divided by the number of models.
    pub low_is_shared: bool,
    /// The start if the recipe gives no value; `None` starts at the default.
    pub start: Option<f64>,
}

impl Parameter {
    /// The weight of a model.
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

    /// The weight of a model in a mean, which cannot be negative.
    #[must_use]
    pub fn weight_of_a_mean() -> Self {
        let range = Range { above: None, least: Some(0.0), most: None };
        let kind = Kind::Number { default: Some(1.0), range, by_tensor: true, search: None };
        Self { kind, ..Self::weight() }
    }

    /// Whether a tensor's matrices are merged as wholes (1), or as other tensors are (0).
    #[must_use]
    pub fn matrices() -> Self {
        let range = Range { above: None, least: Some(0.0), most: Some(1.0) };
        let summary = "1: merge matrices as wholes; 0: as other tensors";
        Self::of_merge(crate::program::matrix::SWITCH, summary, 1.0, range)
    }

    /// What is added to the diagonal of a linear system, as a multiple of its mean eigenvalue.
    #[must_use]
    pub fn ridge() -> Self {
        let range = Range { above: None, least: Some(0.0), most: None };
        let summary = "added to the diagonal, as a multiple of the mean eigenvalue";
        Self::of_merge("ridge", summary, 1e-6, range)
    }

    /// The scale of the merged task vector.
    #[must_use]
    pub fn lambda() -> Self {
        Self::scale(1.0, true)
    }

    /// The scale of a merged task vector that does not grow with the number of models, since it is not
    /// their sum.
    #[must_use]
    pub fn lambda_of_choice(default: f64) -> Self {
        Self::scale(default, false)
    }

    fn scale(default: f64, low_is_shared: bool) -> Self {
        Self {
            name: "lambda",
            summary: "scale of the merged task vector",
            owner: Owner::Merge,
            kind: Kind::Number {
                default: Some(default),
                range: Range::default(),
                by_tensor: true,
                search: Some(Search {
                    low: 0.25,
                    high: 1.5,
                    log: true,
                    low_is_shared,
                    start: None,
                }),
            },
        }
    }

    /// A fraction of entries to keep. `by_tensor`: whether it may differ from tensor to tensor;
    /// `start`: the start of searches, `None` if it is not searched for.
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

    /// A number of each model that searches leave alone and that may differ from tensor to tensor.
    #[must_use]
    pub fn of_model(name: &'static str, summary: &'static str, default: f64, range: Range) -> Self {
        let kind = Kind::Number { default: Some(default), range, by_tensor: true, search: None };
        Self { name, summary, owner: Owner::Model, kind }
    }

    /// A number of the merge that searches leave alone and that may differ from tensor to tensor.
    #[must_use]
    pub fn of_merge(name: &'static str, summary: &'static str, default: f64, range: Range) -> Self {
        Self { owner: Owner::Merge, ..Self::of_model(name, summary, default, range) }
    }

    /// A switch for the whole merge.
    #[must_use]
    pub fn switch(name: &'static str, summary: &'static str, default: bool) -> Self {
        Self { name, summary, owner: Owner::Merge, kind: Kind::Switch { default } }
    }

    /// The switch that divides the weighted sum.
    #[must_use]
    pub fn normalize(default: bool) -> Self {
        Self::switch("normalize", "divide the weighted sum by the sum of the weights", default)
    }

    /// The switch that scales up the entries kept by sparsification.
    #[must_use]
    pub fn rescale(default: bool) -> Self {
        Self::switch("rescale", "scale up the entries that sparsification keeps", default)
    }
}
