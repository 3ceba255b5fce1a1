//! Dense tensors on their way into the artifact: refusing what is not finite, and narrowing.
//!
//! Owns the element types of kept tensors. Packed tensors are the business of `quant`.

use half::{bf16, f16};
use neuroconv_format::{DType, DenseTensor, SharedBytes};
use neuroconv_recipes::TensorId;

use crate::Error;
use crate::journal::Stats;

/// Refuses a tensor that holds NaN or an infinity; `name` is what the checkpoint calls it.
pub(crate) fn check_finite(id: TensorId, name: &str, tensor: &DenseTensor) -> Result<(), Error> {
    let Some(index) = tensor.first_non_finite() else {
        return Ok(());
    };
    let size = tensor.dtype.size();
    let bytes = tensor
        .bytes
        .slice(index * size..(index + 1) * size)
        .unwrap_or(tensor.bytes.clone());
    let one = DenseTensor {
        dtype: tensor.dtype,
        shape: vec![1],
        bytes,
    };
    let value = one.to_f32().first().copied().unwrap_or(f32::NAN);
    Err(Error::NonFinite {
        tensor: id,
        name: name.to_owned(),
        index,
        value,
    })
}

/// The elements as `dtype`, rounded to nearest; with the error where anything could be rounded.
pub(crate) fn convert(
    id: TensorId,
    tensor: &DenseTensor,
    dtype: DType,
) -> Result<(SharedBytes, Option<Stats>), Error> {
    if tensor.dtype == dtype {
        return Ok((tensor.bytes.clone(), None));
    }
    let values = tensor.to_f32();
    let bytes: Vec<u8> = match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values
            .iter()
            .flat_map(|&x| f16::from_f32(x).to_le_bytes())
            .collect(),
        DType::BF16 => values
            .iter()
            .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
            .collect(),
        DType::U8 => {
            let (name, found) = (id.to_string(), dtype.into());
            return Err(Error::SourceDType {
                tensor: id,
                name,
                found,
            });
        }
    };
    let bytes = SharedBytes::from(bytes);
    if dtype == DType::F32 {
        return Ok((bytes, None));
    }
    let narrow = DenseTensor {
        dtype,
        shape: tensor.shape.clone(),
        bytes: bytes.clone(),
    }
    .to_f32();
    if let Some(index) = narrow.iter().position(|x| !x.is_finite()) {
        return Err(Error::TooLarge {
            tensor: id,
            index,
            value: values[index],
            dtype,
        });
    }
    let rel_mse = neuroconv_quant::relative_mse(&values, &narrow);
    Ok((bytes, Some(Stats::new(rel_mse, None, None))))
}

#[cfg(test)]
mod tests {
    use neuroconv_recipes::Role;

    use super::*;

    const ID: TensorId = TensorId::model(Role::FinalNorm);

    fn tensor(dtype: DType, bytes: Vec<u8>) -> DenseTensor {
        DenseTensor {
            dtype,
            shape: vec![bytes.len() / dtype.size()],
            bytes: bytes.into(),
        }
    }

    #[test]
    fn what_is_not_finite_is_refused_by_name_and_index() {
        let bits = [0x3f80u16, 0xff80, 0x7fc0];
        let values = tensor(DType::BF16, bits.map(u16::to_le_bytes).concat());
        match check_finite(ID, "model.norm.weight", &values) {
            Err(Error::NonFinite {
                tensor: ID,
                name,
                index: 1,
                value,
            }) => {
                assert_eq!(
                    (name.as_str(), value),
                    ("model.norm.weight", f32::NEG_INFINITY)
                );
            }
            other => panic!("{other:?}"),
        }
        let finite = tensor(
            DType::BF16,
            bits[..1].iter().flat_map(|b| b.to_le_bytes()).collect(),
        );
        check_finite(ID, "model.norm.weight", &finite).unwrap();
    }

    #[test]
    fn narrowing_rounds_and_never_makes_an_infinity() {
        let source = tensor(
            DType::F32,
            [1.0f32, 1.0 / 3.0, 70_000.0].map(f32::to_le_bytes).concat(),
        );
        let (bytes, stats) = convert(ID, &source, DType::BF16).unwrap();
        assert_eq!(&bytes[2..4], bf16::from_f32(1.0 / 3.0).to_le_bytes());
        assert!(stats.unwrap().rel_mse() < 1e-5);
        assert!(matches!(
            convert(ID, &source, DType::F16),
            Err(Error::TooLarge {
                index: 2,
                dtype: DType::F16,
                ..
            })
        ));
        let (same, stats) = convert(ID, &source, DType::F32).unwrap();
        assert_eq!((&*same, stats), (&*source.bytes, None));
    }
}
