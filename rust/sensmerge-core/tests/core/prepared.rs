//! Merges that are decided once: the same bytes as a whole merge, and derivatives by the weights that
//! agree with finite differences.

use std::collections::BTreeMap;
use std::sync::Arc;

use sensmerge_core::checkpoint::{Checkpoint, MemoryTensor};
use sensmerge_core::dtype::{Dtype, Float};
use sensmerge_core::execute::reduce::Buffer;
use sensmerge_core::execute::{Monitor, Options, Prepared, execute_into};
use sensmerge_core::method::{MethodName, Semantics};
use sensmerge_core::plan::{Inputs, Model, Plan, Recipe, Setting};

const ENTRIES: usize = 3000;
const WEIGHTS: [f64; 3] = [0.7, 1.1, 0.4];

const METHODS: [MethodName; 5] = [
    MethodName::Linear,
    MethodName::TaskArithmetic,
    MethodName::Ties,
    MethodName::DareLinear,
    MethodName::DareTies,
];

/// Numbers in (-1, 1) that look random.
fn numbers(seed: u64) -> impl Iterator<Item = f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::repeat_with(move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from((state >> 32) as i32) / f64::from(i32::MAX)
    })
}

/// Models of two tensors in float64, so that differences of losses mean something.
fn models(count: u64) -> Vec<Arc<Checkpoint>> {
    let model = |place: u64| {
        let tensor = |name: &str, entries: usize, seed: u64| MemoryTensor {
            name: name.to_owned(),
            dtype: Dtype::F64,
            shape: vec![entries],
            bytes: Box::new(
                numbers(seed).take(entries).flat_map(f64::to_le_bytes).collect::<Vec<u8>>(),
            ),
        };
        let tensors =
            vec![tensor("layers.0.w", ENTRIES, 2 * place + 1), tensor("head.w", 10, 2 * place + 2)];
        Arc::new(Checkpoint::from_memory(format!("model{place}"), tensors).unwrap())
    };
    (0..count).map(model).collect()
}

fn recipe(method: MethodName, semantics: Semantics, weights: &[f64]) -> Recipe {
    let model = |weight: &f64| Model {
        weight: Setting::uniform(*weight),
        density: Setting::uniform(if method == MethodName::Linear { 1.0 } else { 0.6 }),
        ..Model::new("model")
    };
    Recipe {
        method,
        semantics,
        base: (method != MethodName::Linear).then(|| "base".into()),
        models: weights.iter().map(model).collect(),
        lambda: Setting::uniform(if method == MethodName::Linear { 1.0 } else { 0.8 }),
        normalize: None,
        rescale: None,
        seed: 5,
        out_dtype: None,
    }
}

fn plan(recipe: &Recipe, models: &[Arc<Checkpoint>]) -> Plan {
    Plan::new(recipe, &Inputs::new(recipe, models.to_vec()).unwrap(), u64::MAX).unwrap()
}

fn buffers() -> BTreeMap<String, Vec<u8>> {
    [("layers.0.w".to_owned(), vec![0; 8 * ENTRIES]), ("head.w".to_owned(), vec![0; 80])].into()
}

fn slices(buffers: &mut BTreeMap<String, Vec<u8>>) -> BTreeMap<String, &mut [u8]> {
    buffers.iter_mut().map(|(name, bytes)| (name.clone(), bytes.as_mut_slice())).collect()
}

fn cases() -> impl Iterator<Item = (MethodName, Semantics)> {
    METHODS.into_iter().flat_map(|method| {
        [Semantics::Mergekit, Semantics::Original].map(move |semantics| (method, semantics))
    })
}

#[test]
fn other_weights_give_the_bytes_of_a_whole_merge() {
    let (options, monitor) = (Options::default(), Monitor::new());
    for (method, semantics) in cases() {
        let models = models(if method == MethodName::Linear { 3 } else { 4 });
        let first = plan(&recipe(method, semantics, &[1.0, 1.0, 1.0]), &models);
        let mut prepared = Prepared::new(first, options.clone(), &monitor).unwrap();
        prepared.reweigh(plan(&recipe(method, semantics, &WEIGHTS), &models)).unwrap();
        let (mut found, mut expected) = (buffers(), buffers());
        prepared.merge_into(slices(&mut found), &monitor).unwrap();
        let whole = plan(&recipe(method, semantics, &WEIGHTS), &models);
        execute_into(&whole, slices(&mut expected), &options, &monitor).unwrap();
        assert!(found == expected, "{method:?} {semantics:?}");
    }
}

#[test]
fn derivatives_are_those_of_finite_differences() {
    let monitor = Monitor::new();
    for (method, semantics) in cases() {
        let models = models(if method == MethodName::Linear { 3 } else { 4 });
        let start = plan(&recipe(method, semantics, &WEIGHTS), &models);
        let mut prepared = Prepared::new(start, Options::default(), &monitor).unwrap();
        // A loss that is linear in the merged tensor: its gradient is the same everywhere.
        let gradient: Vec<f64> = numbers(99).take(ENTRIES).collect();
        let bytes: Vec<u8> = gradient.iter().flat_map(|g| g.to_le_bytes()).collect();
        let buffer = Buffer::new("gradient", &bytes, Float::F64).unwrap();
        let found = prepared.derivatives("layers.0.w", buffer).unwrap();
        let mut loss = |weights: &[f64]| {
            prepared.reweigh(plan(&recipe(method, semantics, weights), &models)).unwrap();
            let mut merged = buffers();
            prepared.merge_into(slices(&mut merged), &monitor).unwrap();
            let (entries, _) = merged["layers.0.w"].as_chunks::<8>();
            let products = entries.iter().zip(&gradient).map(|(x, g)| f64::from_le_bytes(*x) * g);
            products.sum::<f64>()
        };
        for (expert, found) in found.into_iter().enumerate() {
            let (mut above, mut below) = (WEIGHTS, WEIGHTS);
            above[expert] += 1e-6;
            below[expert] -= 1e-6;
            let expected = (loss(&above) - loss(&below)) / 2e-6;
            let error = (found - expected).abs();
            assert!(error < 1e-6 * (1.0 + expected.abs()), "{method:?} {found} {expected}");
        }
    }
}

#[test]
fn what_keeps_other_entries_is_not_served() {
    let (models, monitor) = (models(4), Monitor::new());
    let base = recipe(MethodName::DareLinear, Semantics::Mergekit, &WEIGHTS);
    let prepared = Prepared::new(plan(&base, &models), Options::default(), &monitor).unwrap();
    let serves = |change: fn(&mut Recipe)| {
        let mut other = base.clone();
        change(&mut other);
        prepared.serves(&plan(&other, &models))
    };
    assert!(serves(|recipe| recipe.models[0].weight.value = -2.0));
    assert!(serves(|recipe| recipe.lambda.value = 3.0));
    assert!(serves(|recipe| recipe.out_dtype = Some(Float::Bf16)));
    assert!(!serves(|recipe| recipe.seed = 6));
    assert!(!serves(|recipe| recipe.models[1].density.value = 0.5));
    assert!(!serves(|recipe| recipe.method = MethodName::Ties));
    assert!(!serves(|recipe| recipe.rescale = Some(false)));
    assert!(!prepared.serves(&plan(&base, &self::models(4))));
    assert!(!prepared.serves(&plan(&base, &[0, 2, 1, 3].map(|place| Arc::clone(&models[place])))));
}

#[test]
fn a_gradient_must_fit_its_tensor() {
    let (models, monitor) = (models(4), Monitor::new());
    let plan = plan(&recipe(MethodName::Ties, Semantics::Mergekit, &WEIGHTS), &models);
    let prepared = Prepared::new(plan, Options::default(), &monitor).unwrap();
    let bytes = vec![0; 80];
    let buffer = Buffer::new("gradient", &bytes, Float::F64).unwrap();
    assert_eq!(prepared.derivatives("head.w", buffer).unwrap(), [0.0; 3]);
    let said = prepared.derivatives("layers.0.w", buffer).unwrap_err().to_string();
    assert!(said.contains("10 entries where 3000"), "{said}");
    let said = prepared.derivatives("nowhere", buffer).unwrap_err().to_string();
    assert!(said.contains("nowhere"), "{said}");
}
