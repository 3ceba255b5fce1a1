//! What can be wrong with a checkpoint folder.

use std::path::Path;

use crate::limits;

/// Why a folder is no usable checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum CheckpointError {
    #[error("`{}` is missing", crate::checkpoint::CONFIG)]
    NoConfig,
    #[error(
        "neither `{}` nor `{}` is there",
        crate::checkpoint::SINGLE,
        crate::checkpoint::INDEX
    )]
    NoWeights,
    #[error("the weights are only there as `{file}`, which is not read")]
    OtherWeights { file: String },
    #[error("`{}`: key `{key}` occurs twice", crate::checkpoint::INDEX)]
    DuplicateKey { key: String },
    #[error("`{}`: `weight_map` is missing", crate::checkpoint::INDEX)]
    NoWeightMap,
    #[error(
        "`{}`: tensor `{tensor}`: `{shard}` is not the plain name of a `.safetensors` file",
        crate::checkpoint::INDEX
    )]
    ShardName { tensor: String, shard: String },
    #[error("`{}`: more than {} shards", crate::checkpoint::INDEX, limits::SHARDS)]
    ShardCount,
    #[error("more than {} tensors", limits::TENSORS)]
    TensorCount,
    #[error("shard `{shard}` is missing, which should hold tensor `{tensor}`")]
    NoShard { shard: String, tensor: String },
    #[error("shard `{shard}` does not hold tensor `{tensor}`, which the index places there")]
    NotInShard { shard: String, tensor: String },
    #[error("shard `{shard}` holds tensor `{tensor}`, which the index does not place there")]
    NotInIndex { shard: String, tensor: String },
}

impl CheckpointError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            CheckpointError::NoConfig | CheckpointError::NoWeights => {
                "name the folder of a Hugging Face checkpoint with safetensors weights"
            }
            CheckpointError::OtherWeights { file }
                if Path::new(file).extension().is_some_and(|end| end == "gguf") =>
            {
                "give the GGUF file itself, by name"
            }
            CheckpointError::OtherWeights { .. } => {
                "download the safetensors version of the model, or convert it with `save_pretrained`"
            }
            CheckpointError::NoShard { .. } => "the download is not complete; download it again",
            CheckpointError::NotInShard { .. } | CheckpointError::NotInIndex { .. } => {
                "index and shards are not from the same download; download both again"
            }
            CheckpointError::DuplicateKey { .. }
            | CheckpointError::NoWeightMap
            | CheckpointError::ShardName { .. }
            | CheckpointError::ShardCount
            | CheckpointError::TensorCount => {
                "the index is damaged or not what it claims to be; download it again"
            }
        };
        Some(hint.to_owned())
    }
}
