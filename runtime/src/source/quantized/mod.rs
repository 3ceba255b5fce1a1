//! A folder whose matrices are quantized already, seen as a checkpoint with dense ones.
//!
//! Owns which methods are known and how their tensors are found; one file per form says what the bits
//! mean. Values come out as single precision; those of `BitNet` in half precision, which holds them exactly.
//! What a method does to activations is not done here, and said.

mod bitnet;
mod compressed;
mod fp8;
mod levels;
mod parts;
mod transposed;

use std::collections::{BTreeMap, BTreeSet};

use neuroconv_format::{CheckpointFiles, DType, DenseTensor, ElementType, TensorInfo};
use serde_json::Value;

use self::parts::{Parts, Settings};
use crate::Error;

/// The key of a configuration that says how weights were quantized.
pub(super) const KEY: &str = "quantization_config";

/// How the matrices of a folder are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Method {
    Bitnet(bitnet::Scale),
    Compressed,
    Gptq(transposed::Gptq),
    Awq,
    Fp8(fp8::Block),
}

impl Method {
    const KNOWN: &str = "bitnet, compressed-tensors, gptq, awq, fp8";

    /// What a configuration says.
    fn read(settings: &Settings<'_>) -> Result<Self, Error> {
        match settings.needed("quant_method")?.as_str() {
            Some("bitnet") => Ok(Method::Bitnet(bitnet::settings(settings)?)),
            Some("compressed-tensors") => {
                compressed::check(settings)?;
                Ok(Method::Compressed)
            }
            Some("gptq") => Ok(Method::Gptq(transposed::gptq(settings)?)),
            Some("awq") => {
                transposed::check_awq(settings)?;
                Ok(Method::Awq)
            }
            Some("fp8") => Ok(Method::Fp8(fp8::settings(settings)?)),
            _ => Err(settings.bad("quant_method", &format!("known are {}", Method::KNOWN))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Method::Bitnet(_) => "bitnet",
            Method::Compressed => "compressed-tensors",
            Method::Gptq(_) => "gptq",
            Method::Awq => "awq",
            Method::Fp8(_) => "fp8",
        }
    }

    /// The end of the name of the tensor that holds codes, and of those that belong to it.
    fn suffixes(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Method::Bitnet(_) => ("weight", &["weight_scale"]),
            Method::Compressed => (
                "weight_packed",
                &[
                    "weight_scale",
                    "weight_shape",
                    "weight_zero_point",
                    "weight_g_idx",
                ],
            ),
            Method::Gptq(_) => ("qweight", &["qzeros", "scales", "g_idx"]),
            Method::Awq => ("qweight", &["qzeros", "scales"]),
            Method::Fp8(_) => ("weight", &["weight_scale_inv"]),
        }
    }

    /// Whether a tensor of this name and type holds codes.
    fn is_codes(self, info: &TensorInfo) -> bool {
        let element = match self {
            Method::Bitnet(_) => ElementType::U8,
            Method::Compressed | Method::Gptq(_) | Method::Awq => ElementType::I32,
            Method::Fp8(_) => ElementType::F8_E4M3,
        };
        let (suffix, _) = self.suffixes();
        let stem = info.name.strip_suffix(suffix);
        info.dtype == element && stem.is_some_and(|stem| stem.ends_with('.'))
    }

    /// Rows and columns of the matrix.
    fn shape(self, parts: &Parts<'_>) -> Result<[usize; 2], Error> {
        match self {
            Method::Bitnet(_) => bitnet::shape(parts),
            Method::Compressed => compressed::shape(parts),
            Method::Gptq(gptq) => gptq.shape(parts),
            Method::Awq => transposed::awq_shape(parts),
            Method::Fp8(block) => fp8::shape(parts, block),
        }
    }

    /// The values of the matrix, row by row.
    fn values(self, parts: &Parts<'_>) -> Result<Vec<f32>, Error> {
        match self {
            Method::Bitnet(scale) => bitnet::values(parts, scale),
            Method::Compressed => compressed::values(parts),
            Method::Gptq(gptq) => gptq.values(parts),
            Method::Awq => transposed::awq_values(parts),
            Method::Fp8(block) => fp8::values(parts, block),
        }
    }

    /// The element type that holds the values.
    fn dtype(self) -> DType {
        match self {
            Method::Bitnet(_) => DType::F16,
            Method::Compressed | Method::Gptq(_) | Method::Awq | Method::Fp8(_) => DType::F32,
        }
    }

    /// What people should know of models that were quantized so.
    fn warning(self) -> Option<String> {
        let rounds = match self {
            Method::Bitnet(_) => "was trained with activations rounded to eight bits per token",
            Method::Fp8(_) => "is run by others with activations rounded to eight bits",
            Method::Compressed | Method::Gptq(_) | Method::Awq => return None,
        };
        let name = self.name();
        Some(format!(
            "the model {rounds} ({name}); they are not rounded here"
        ))
    }
}

/// A folder with quantized matrices.
#[derive(Debug)]
pub(super) struct QuantizedFolder {
    files: CheckpointFiles,
    method: Method,
    config: Value,
    views: BTreeMap<String, View>,
    warnings: Vec<String>,
}

/// A tensor as it is seen.
#[derive(Debug)]
struct View {
    info: TensorInfo,
    /// What the names of its parts begin with, where it is decoded.
    stem: Option<String>,
}

/// Whether a configuration says that weights are quantized.
pub(super) fn is_quantized(config: &Value) -> bool {
    match config.get(KEY) {
        Some(Value::Object(settings)) => !settings.is_empty(),
        _ => false,
    }
}

impl QuantizedFolder {
    pub(super) fn open(files: CheckpointFiles) -> Result<Self, Error> {
        let settings = Settings::of(files.path(), files.config());
        let method = Method::read(&settings)?;
        let (suffix, others) = method.suffixes();
        let mut views = BTreeMap::new();
        let mut used: BTreeSet<String> = BTreeSet::new();
        for info in files.tensors().filter(|info| method.is_codes(info)) {
            let stem = info.name.strip_suffix(suffix).unwrap_or_default();
            let parts = Parts::new(&files, stem, suffix);
            let shape = method.shape(&parts)?.to_vec();
            let stored: Vec<&TensorInfo> = others
                .iter()
                .filter_map(|other| files.info(&format!("{stem}{other}")))
                .chain([info])
                .collect();
            used.extend(stored.iter().map(|info| info.name.clone()));
            let bytes: u64 = stored.iter().map(|info| info.size_bytes()).sum();
            let name = format!("{stem}weight");
            let info = TensorInfo {
                name: name.clone(),
                dtype: method.dtype().into(),
                shape,
                // As many bytes as all parts have: they lie in several places.
                range: info.range.start..info.range.start + bytes,
            };
            let stem = Some(stem.to_owned());
            views.insert(name, View { info, stem });
        }
        let mut plain = BTreeMap::new();
        for info in files.tensors().filter(|info| !used.contains(&info.name)) {
            if views.contains_key(&info.name) {
                let name = info.name.clone();
                return Err(neuroconv_recipes::Error::DuplicateTensor { name }.into());
            }
            let info = info.clone();
            plain.insert(info.name.clone(), View { info, stem: None });
        }
        let warnings = method.warning().filter(|_| !views.is_empty());
        views.extend(plain);
        let mut config = files.config().clone();
        if let Some(map) = config.as_object_mut() {
            map.shift_remove(KEY);
        }
        Ok(QuantizedFolder {
            files,
            method,
            config,
            views,
            warnings: warnings.into_iter().collect(),
        })
    }

    /// The files as they are.
    pub(super) fn files(&self) -> &CheckpointFiles {
        &self.files
    }

    /// The configuration without what it says of quantization.
    pub(super) fn config(&self) -> &Value {
        &self.config
    }

    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.views.values().map(|view| &view.info)
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.views.get(name).map(|view| &view.info)
    }

    /// Whether a tensor is decoded.
    pub(super) fn decodes(&self, name: &str) -> bool {
        self.views.get(name).is_some_and(|view| view.stem.is_some())
    }

    /// The name of the method, where it rounded anything.
    pub(super) fn rounded(&self) -> Option<&'static str> {
        let mut views = self.views.values();
        views
            .any(|view| view.stem.is_some())
            .then(|| self.method.name())
    }

    /// Whether what was rounded has three levels per matrix.
    pub(super) fn is_ternary(&self) -> bool {
        matches!(self.method, Method::Bitnet(_))
    }

    pub(super) fn read(&self, name: &str) -> Result<DenseTensor, Error> {
        let view = self.views.get(name);
        let Some((info, stem)) = view.and_then(|view| Some((&view.info, view.stem.as_ref()?)))
        else {
            return Ok(self.files.read(name)?);
        };
        let parts = Parts::new(&self.files, stem, self.method.suffixes().0);
        let values = self.method.values(&parts)?;
        let dtype = self.method.dtype();
        let bytes: Vec<u8> = match dtype {
            DType::F16 => {
                let halves = values.iter().map(|v| half::f16::from_f32(*v));
                halves.flat_map(half::f16::to_le_bytes).collect()
            }
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        Ok(DenseTensor {
            dtype,
            shape: info.shape.clone(),
            bytes: bytes.into(),
        })
    }
}

#[cfg(test)]
mod tests;
