//! From what was typed as MODEL to a folder or file that can be opened.
//!
//! Owns the order of meanings: what exists is a path, and only what cannot be one, or is none, is looked
//! for on a hub. The hub itself is in `neuroconv_convert::hub`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use neuroconv_convert::hub::{Found, Headers, Hub, HubError, Located, Reference, Settings};
use neuroconv_runtime::open_source;

use crate::args::HubArgs;
use crate::failure::Misuse;
use crate::interrupt;
use crate::pipeline::INTERRUPTED;
use crate::present;
use crate::ui::Ui;

/// How much of a model is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Configuration and headers.
    Plan,
    /// These and the tokenizer.
    Tokenizer,
    /// All of it.
    Weights,
}

/// A model that can be opened.
#[derive(Debug)]
pub(crate) struct Model {
    /// Its folder or file.
    pub(crate) path: PathBuf,
    /// What it is called.
    pub(crate) name: String,
    is_path: bool,
    _headers: Option<Headers>,
}

impl Model {
    fn of_path(path: &Path) -> Self {
        Model {
            path: path.to_owned(),
            name: path.display().to_string(),
            is_path: true,
            _headers: None,
        }
    }

    /// Puts the name in front of what goes wrong in a folder that the user has not named.
    pub(crate) fn in_context<T, E>(&self, result: Result<T, E>) -> anyhow::Result<T>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        if self.is_path {
            return Ok(result?);
        }
        result.with_context(|| self.name.clone())
    }
}

/// Finds the model that is meant, and fetches as much of it as is needed.
pub(crate) fn resolve(model: &Path, args: &HubArgs, need: Need, ui: Ui) -> anyhow::Result<Model> {
    match reference(model, args)? {
        Some((reference, settings)) => {
            let endpoint = settings.endpoint();
            of_hub(&reference, settings, need, ui).map_err(|error| {
                let may_be_a_path = !model.to_string_lossy().contains("://") && is_unknown(&error);
                // Who mistyped a path must be told that it was taken for something else.
                let meant = || format!("`{}` is no path here, and on {endpoint}", model.display());
                if may_be_a_path { error.context(meant()) } else { error }
            })
        }
        None if args.revision.is_some() => Err(Misuse::new(
            format!("--revision is for models of a hub, and `{}` is a path", model.display()),
            "drop it, or name the model as `org/name`; `hf://org/name` where a folder has that name",
        )
        .into()),
        None => Ok(Model::of_path(model)),
    }
}

/// Whether nothing is known of the model that was named.
fn is_unknown(error: &anyhow::Error) -> bool {
    use HubError::{NoRepository, OfflineRevision, Unreachable};
    let hub = error.downcast_ref::<HubError>();
    hub.is_some_and(|e| {
        matches!(
            e,
            NoRepository { .. } | OfflineRevision { .. } | Unreachable { .. }
        )
    })
}

/// The model of a hub that is meant, unless it is a path.
fn reference(model: &Path, args: &HubArgs) -> anyhow::Result<Option<(Reference, Settings)>> {
    let text = model.to_str().filter(|text| text.contains('/'));
    let Some(text) = text.filter(|_| !model.exists()) else {
        return Ok(None);
    };
    let settings = Settings::from_env(|name| std::env::var(name).ok(), args.offline)?;
    let Some(reference) = Reference::parse(text, &settings.endpoint())? else {
        return Ok(None);
    };
    let reference = match (&args.revision, reference.named_revision()) {
        (None, _) => reference,
        (Some(revision), None) => reference.at(revision)?,
        (Some(_), Some(named)) => {
            return Err(Misuse::new(
                format!("`{text}` names the revision `{named}`, and --revision another"),
                "name one of them",
            )
            .into());
        }
    };
    Ok(Some((reference, settings)))
}

fn of_hub(reference: &Reference, settings: Settings, need: Need, ui: Ui) -> anyhow::Result<Model> {
    interrupt::watch_resumable();
    let cache = settings.cache().to_owned();
    let hub = Hub::new(settings)?;
    let (commit, located) = hub.locate(reference, &INTERRUPTED)?;
    let name = format!("{}@{commit}", reference.repository);
    ui.note(format!("source: hub {name}"));
    let (path, headers) = match located {
        Located::Here(path) => (path, None),
        Located::There(found) if need == Need::Weights || found.is_artifact() => {
            check(&hub, &found).with_context(|| name.clone())?;
            ui.note(format!("fetching it into {}", cache.display()));
            let progress = ui.progress();
            (hub.fetch(&found, progress.as_ref(), &INTERRUPTED)?, None)
        }
        Located::There(found) => {
            let headers = headers(&hub, &found, need, ui)?;
            (headers.path.clone(), Some(headers))
        }
    };
    interrupt::unwatch();
    Ok(Model {
        path,
        name,
        is_path: false,
        _headers: headers,
    })
}

/// Opens the headers alone, so that what is refused is refused before its weights are fetched.
fn check(hub: &Hub, found: &Found) -> anyhow::Result<()> {
    if found.is_artifact() {
        return Ok(());
    }
    match hub.headers(found, false, &INTERRUPTED) {
        Ok(headers) => open_source(&headers.path).map(|_| ())?,
        // A server without ranges: the model is opened when all of it is here.
        Err(HubError::Answer { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn headers(hub: &Hub, found: &Found, need: Need, ui: Ui) -> anyhow::Result<Headers> {
    let headers = hub.headers(found, need == Need::Tokenizer, &INTERRUPTED)?;
    let read = present::bytes(headers.fetched);
    ui.note(format!(
        "read {read} of headers and small files, no weights"
    ));
    if headers.sampled_head {
        ui.note(
            "the head is taken for the embedding once more, for they agree wherever they were compared; \
             a conversion compares all of them",
        );
    }
    Ok(headers)
}
