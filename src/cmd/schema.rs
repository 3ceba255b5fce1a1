//! `neuroconv schema`: the JSON Schema of what this program writes.

use crate::args::{SchemaArg, SchemaArgs};
use crate::exit::Exit;
use crate::ui::Ui;

pub(crate) fn run(args: &SchemaArgs) -> Exit {
    let schema = match args.what {
        SchemaArg::Report => neuroconv_verify::report::SCHEMA,
    };
    Ui::raw_result(schema);
    Exit::Done
}
