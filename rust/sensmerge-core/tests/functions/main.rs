//! Methods whose functions come from outside the crate; in a process of their own, since what is
//! registered stays.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its input has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sensmerge_core::checkpoint::{Checkpoint, MemoryTensor};
use sensmerge_core::dtype::Dtype;
use sensmerge_core::engine::{Inputs, Monitor, Options, Prepared, execute_into};
use sensmerge_core::manifest::{Activations, Builder, Manifest, Number, View};
use sensmerge_core::method::{
    Base, Call, Count, Failure, Foreign, Form, Function, Owner, Package, Parameter, Range, Schema,
    register,
};
use sensmerge_core::{Error, Result};

const ENTRIES: usize = 5000;

/// The first model's task vector times a factor; of whole tensors, backwards. Refuses factors above 9.
#[derive(Debug)]
struct Scaled(Form);

impl Scaled {
    fn merge<T: Copy>(
        &self,
        call: &mut Call<T>,
        times: fn(T, f64) -> T,
    ) -> std::result::Result<(), Failure> {
        let Some(Number::Models(factors)) = call.numbers.get("factor") else {
            return Err(Failure { reason: "has no factor".into(), cause: None });
        };
        if factors[0] > 9.0 {
            let cause = Some("a cause".into());
            return Err(Failure { reason: "is too much".into(), cause });
        }
        let row = &call.rows[..call.out.len()];
        call.out.copy_from_slice(row);
        if self.0 == Form::Tensors {
            assert_eq!(call.entries, 0..ENTRIES);
            call.out.reverse();
        }
        call.out.iter_mut().for_each(|entry| *entry = times(*entry, factors[0]));
        Ok(())
    }
}

impl Function for Scaled {
    fn single(&self, mut call: Call<f32>) -> std::result::Result<(), Failure> {
        self.merge(&mut call, |entry, factor| entry * factor as f32)
    }

    fn double(&self, mut call: Call<f64>) -> std::result::Result<(), Failure> {
        self.merge(&mut call, |entry, factor| entry * factor)
    }
}

fn registered(name: &'static str, form: Form) -> &'static str {
    let schema = Schema {
        name,
        title: name,
        summary: "",
        source: "",
        base: Base::Needed,
        models: Count::at_least(1),
        parameters: vec![
            Parameter::of_model("factor", "", 2.0, Range::default()),
            Parameter::lambda(),
        ],
        coefficients: false,
        learnable: false,
        statistic: None,
    };
    assert_eq!(schema.parameters[0].owner, Owner::Model);
    let package = Package { name: "theirs".into(), version: "1.2".into() };
    register(Foreign { schema, package, form, function: Arc::new(Scaled(form)) }).unwrap();
    name
}

fn model(name: &str, dtype: Dtype, slope: f64) -> Arc<Checkpoint> {
    let values = (0..ENTRIES).map(|place| slope * place as f64);
    let bytes: Vec<u8> = match dtype {
        Dtype::F64 => values.flat_map(f64::to_le_bytes).collect(),
        _ => values.flat_map(|value| (value as f32).to_le_bytes()).collect(),
    };
    let shape = vec![ENTRIES];
    let tensor = MemoryTensor { name: "w".into(), dtype, shape, bytes: Box::new(bytes) };
    Arc::new(Checkpoint::from_memory(name, vec![tensor]).unwrap())
}

fn planned(method: &str, dtype: Dtype, factor: f64) -> (Manifest, Inputs) {
    let (base, one) = (model("base", dtype, 1.0), model("one", dtype, 1.5));
    let builder = Builder::new(method).base(View::new(base.clone())).model(View::new(one.clone()));
    let builder = builder.numbers("factor", &[factor]).number("lambda", 0.5);
    let manifest = builder.build().unwrap();
    let inputs = Inputs::of(&manifest, vec![base, one]).unwrap();
    (manifest, inputs)
}

fn merged(method: &str, dtype: Dtype, factor: f64, options: &Options) -> Result<Vec<f64>> {
    let (manifest, inputs) = planned(method, dtype, factor);
    let mut bytes = vec![0; manifest.tensors[0].nbytes()];
    let buffers = BTreeMap::from([("w".to_owned(), bytes.as_mut_slice())]);
    execute_into(&manifest, &inputs, buffers, options, &Monitor::new())?;
    Ok(values(dtype, &bytes))
}

fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        Dtype::F64 => bytes.chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        _ => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
    }
}

/// `place + 0.5 · factor · 0.5 · place`, all of it exact; of whole tensors with the place from the end.
fn expected(form: Form, factor: f64) -> Vec<f64> {
    let change = |place: usize| 0.25 * factor * place as f64;
    (0..ENTRIES)
        .map(|place| match form {
            Form::Entries => place as f64 + change(place),
            Form::Tensors => place as f64 + change(ENTRIES - 1 - place),
        })
        .collect()
}

#[test]
fn chunks_threads_and_memory_do_not_change_what_is_merged() {
    for (name, form) in [("scaled", Form::Entries), ("backwards", Form::Tensors)] {
        let method = registered(name, form);
        for dtype in [Dtype::F32, Dtype::F64] {
            for (threads, chunk_bytes, matrix_bytes) in [(1, 4096, 1), (3, 16384, 1 << 30)] {
                let (threads, matrix_bytes) = (Some(threads), Some(matrix_bytes));
                let options = Options { threads, chunk_bytes, matrix_bytes, ..Options::default() };
                let found = merged(method, dtype, 4.0, &options).unwrap();
                assert_eq!(found, expected(form, 4.0), "{name} {dtype:?}");
            }
        }
    }
}

#[test]
fn what_a_function_merges_is_damped() {
    let method = registered("damped", Form::Entries);
    let (base, one) = (model("base", Dtype::F32, 1.0), model("one", Dtype::F32, 1.5));
    // Every other channel is as active as any.
    let measured = (0..ENTRIES).flat_map(|place| ((place % 2) as f32).to_le_bytes());
    let bytes = Box::new(measured.collect::<Vec<u8>>());
    let (name, shape) = ("w".to_owned(), vec![ENTRIES]);
    let tensor = MemoryTensor { name, dtype: Dtype::F32, shape, bytes };
    let checkpoint = Arc::new(Checkpoint::from_memory("activations", vec![tensor]).unwrap());
    let activations = Activations { checkpoint: checkpoint.clone(), transposed: BTreeSet::new() };
    let view = View::new(base.clone()).activations(activations);
    let builder = Builder::new(method).base(view).model(View::new(one.clone()));
    let manifest = builder.numbers("factor", &[4.0]).omega(0.0).build().unwrap();
    let inputs = Inputs::of(&manifest, vec![base, checkpoint, one]).unwrap();
    let mut bytes = vec![0; 4 * ENTRIES];
    let buffers = BTreeMap::from([("w".to_owned(), bytes.as_mut_slice())]);
    execute_into(&manifest, &inputs, buffers, &Options::default(), &Monitor::new()).unwrap();
    let wanted = (0..ENTRIES).map(|place| {
        let change = if place % 2 == 0 { 2.0 * place as f64 } else { 0.0 };
        place as f64 + change
    });
    assert_eq!(values(Dtype::F32, &bytes), wanted.collect::<Vec<_>>());
}

#[test]
fn a_prepared_merge_takes_other_numbers() {
    let method = registered("prepared", Form::Entries);
    let (manifest, inputs) = planned(method, Dtype::F32, 4.0);
    let mut prepared =
        Prepared::new(manifest, inputs, Options::default(), &Monitor::new()).unwrap();
    prepared.reweigh(planned(method, Dtype::F32, 8.0).0).unwrap();
    let mut bytes = vec![0; 4 * ENTRIES];
    let buffers = BTreeMap::from([("w".to_owned(), bytes.as_mut_slice())]);
    prepared.merge_into(buffers, &Monitor::new()).unwrap();
    assert_eq!(values(Dtype::F32, &bytes), expected(Form::Entries, 8.0));
}

#[test]
fn a_failure_names_method_and_tensor_and_keeps_its_cause() {
    let method = registered("failing", Form::Entries);
    let error = merged(method, Dtype::F32, 10.0, &Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "method 'failing': tensor 'w': is too much");
    assert!(
        matches!(&error, Error::Method { cause: Some(cause), .. } if cause.to_string() == "a cause")
    );
}

#[test]
fn a_manifest_is_of_one_version_of_a_package() {
    let method = registered("versioned", Form::Entries);
    let text = planned(method, Dtype::F32, 1.0).0.to_json().unwrap();
    let read = |from: &str, to: &str| {
        Manifest::from_json(&text.replace(from, to)).map_err(|error| error.to_string())
    };
    assert!(read("none", "none").is_ok());
    let said = read("\"1.2\"", "\"1.3\"").unwrap_err();
    assert!(said.contains("is of theirs 1.3, here it is of theirs 1.2"), "{said}");
    assert!(said.contains("pip install theirs==1.3"), "{said}");
    let said = read("versioned", "not_here").unwrap_err();
    assert!(said.contains("'not_here' is a method of theirs 1.2; install it"), "{said}");
}
