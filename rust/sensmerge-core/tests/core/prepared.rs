//! Prepared merges: the same bytes as a whole merge, and derivatives by the weights that agree with
//! finite differences.

use std::collections::BTreeMap;
use std::sync::Arc;

use sensmerge_core::checkpoint::{Checkpoint, MemoryTensor};
use sensmerge_core::dtype::{Dtype, Float};
use sensmerge_core::engine::reduce::Buffer;
use sensmerge_core::engine::{Inputs, Monitor, Options, Prepared, execute_into};
use sensmerge_core::manifest::{Builder, Manifest};
use sensmerge_core::method::Semantics;

use crate::files;

const ENTRIES: usize = 3000;
const WEIGHTS: [f64; 3] = [0.7, 1.1, 0.4];

const METHODS: [&str; 14] = [
    "linear",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
    "magmax",
    "emr",
    "consensus",
    "pcb",
    "widen",
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

/// Models of two tensors in float64, so that rounding does not drown finite differences of losses.
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

fn builder(method: &str, semantics: Semantics, weights: &[f64]) -> Builder {
    let builder = Builder::new(method).semantics(semantics).seed(5).numbers("weight", weights);
    let builder = if method == "linear" { builder } else { builder.number("lambda", 0.8) };
    match (method, semantics) {
        ("linear" | "task_arithmetic" | "magmax" | "emr" | "consensus" | "widen", _) => builder,
        ("dare_ties", Semantics::Original) => {
            builder.numbers("density", &[0.6; 3]).numbers("ties_density", &[0.6; 3])
        }
        _ => builder.numbers("density", &[0.6; 3]),
    }
}

fn plan(builder: Builder, models: &[Arc<Checkpoint>]) -> (Manifest, Inputs) {
    let (base, experts) =
        if models.len() > 3 { (models.first(), &models[1..]) } else { (None, models) };
    files::plan(builder, base, experts, |_, input| input).unwrap()
}

fn prepare(builder: Builder, models: &[Arc<Checkpoint>]) -> Prepared {
    let (manifest, inputs) = plan(builder, models);
    Prepared::new(manifest, inputs, Options::default(), &Monitor::new()).unwrap()
}

fn buffers() -> BTreeMap<String, Vec<u8>> {
    [("layers.0.w".to_owned(), vec![0; 8 * ENTRIES]), ("head.w".to_owned(), vec![0; 80])].into()
}

fn slices(buffers: &mut BTreeMap<String, Vec<u8>>) -> BTreeMap<String, &mut [u8]> {
    buffers.iter_mut().map(|(name, bytes)| (name.clone(), bytes.as_mut_slice())).collect()
}

fn cases() -> impl Iterator<Item = (&'static str, Semantics)> {
    METHODS.into_iter().flat_map(|method| {
        [Semantics::Mergekit, Semantics::Original].map(move |semantics| (method, semantics))
    })
}

#[test]
fn other_weights_give_the_bytes_of_a_whole_merge() {
    let (options, monitor) = (Options::default(), Monitor::new());
    for (method, semantics) in cases() {
        let models = models(if method == "linear" { 3 } else { 4 });
        let mut prepared = prepare(builder(method, semantics, &[1.0, 1.0, 1.0]), &models);
        let (whole, inputs) = plan(builder(method, semantics, &WEIGHTS), &models);
        prepared.reweigh(whole.clone()).unwrap();
        let (mut found, mut expected) = (buffers(), buffers());
        prepared.merge_into(slices(&mut found), &monitor).unwrap();
        execute_into(&whole, &inputs, slices(&mut expected), &options, &monitor).unwrap();
        assert!(found == expected, "{method} {semantics:?}");
    }
}

#[test]
fn derivatives_are_those_of_finite_differences() {
    let monitor = Monitor::new();
    for (method, semantics) in cases() {
        let models = models(if method == "linear" { 3 } else { 4 });
        let mut prepared = prepare(builder(method, semantics, &WEIGHTS), &models);
        // A loss that is linear in the merged tensor, so that its gradient is constant.
        let gradient: Vec<f64> = numbers(99).take(ENTRIES).collect();
        let bytes: Vec<u8> = gradient.iter().flat_map(|g| g.to_le_bytes()).collect();
        let buffer = Buffer::new("gradient", &bytes, Float::F64).unwrap();
        let found = prepared.derivatives("layers.0.w", buffer).unwrap();
        let mut loss = |weights: &[f64]| {
            prepared.reweigh(plan(builder(method, semantics, weights), &models).0).unwrap();
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
            assert!(error < 1e-6 * (1.0 + expected.abs()), "{method} {found} {expected}");
        }
    }
}

#[test]
fn what_keeps_other_entries_is_not_served() {
    let models = models(4);
    let base = || builder("dare_linear", Semantics::Mergekit, &WEIGHTS);
    let prepared = prepare(base(), &models);
    let serves = |builder| prepared.serves(&plan(builder, &models).0);
    assert!(serves(base().numbers("weight", &[-2.0, 1.0, 1.0])));
    assert!(serves(base().number("lambda", 3.0)));
    assert!(serves(base().switch("normalize", true)));
    assert!(serves(base().out_dtype(Float::Bf16)));
    assert!(!serves(base().seed(6)));
    assert!(!serves(base().numbers("density", &[0.6, 0.5, 0.6])));
    assert!(!serves(builder("ties", Semantics::Mergekit, &WEIGHTS)));
    assert!(!serves(base().switch("rescale", false)));
    let swapped = [0, 2, 1, 3].map(|place| Arc::clone(&models[place]));
    assert!(!prepared.serves(&plan(base(), &swapped).0));
    for (method, parameter) in [("della", "epsilon"), ("breadcrumbs_ties", "gamma")] {
        let base = || builder(method, Semantics::Mergekit, &WEIGHTS);
        let prepared = prepare(base().numbers(parameter, &[0.1; 3]), &models);
        assert!(prepared.serves(&plan(base().numbers(parameter, &[0.1; 3]), &models).0));
        assert!(!prepared.serves(&plan(base().numbers(parameter, &[0.1, 0.2, 0.1]), &models).0));
    }
    let ram = || Builder::new("ramplus_tl").numbers("epsilon", &[0.1; 3]);
    let counted = prepare(ram(), &models);
    assert!(counted.serves(&plan(ram().number("r", 0.5), &models).0));
    assert!(!counted.serves(&plan(ram().numbers("epsilon", &[0.1, 0.2, 0.1]), &models).0));
    let original = builder("ties", Semantics::Original, &WEIGHTS);
    let other = plan(builder("ties", Semantics::Mergekit, &WEIGHTS), &models).0;
    assert!(!prepare(original, &models).serves(&other));
}

#[test]
fn a_gradient_must_fit_its_tensor() {
    let prepared = prepare(builder("ties", Semantics::Mergekit, &WEIGHTS), &models(4));
    let bytes = vec![0; 80];
    let buffer = Buffer::new("gradient", &bytes, Float::F64).unwrap();
    assert_eq!(prepared.derivatives("head.w", buffer).unwrap(), [0.0; 3]);
    let said = prepared.derivatives("layers.0.w", buffer).unwrap_err().to_string();
    assert!(said.contains("10 entries where 3000"), "{said}");
    let said = prepared.derivatives("nowhere", buffer).unwrap_err().to_string();
    assert!(said.contains("nowhere"), "{said}");
}

#[test]
fn weights_that_follow_from_angles_cannot_be_learned() {
    let slerp = Builder::new("slerp").number("t", 0.3);
    let (manifest, inputs) = files::plan(slerp, None, &models(2), |_, input| input).unwrap();
    let prepared = Prepared::new(manifest, inputs, Options::default(), &Monitor::new()).unwrap();
    let bytes = vec![0; 80];
    let buffer = Buffer::new("gradient", &bytes, Float::F64).unwrap();
    let said = prepared.derivatives("head.w", buffer).unwrap_err().to_string();
    assert!(said.contains("slerp cannot be learned"), "{said}");
}
