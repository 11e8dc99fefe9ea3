//! `cachelet stat`: an object as the cache sees it.

use serde_json::{Value, json};

use crate::arguments::{Common, Output, Stat};
use crate::connect;
use crate::failure::Failure;
use crate::locate;
use crate::output;
use crate::service::{Location, PathRequest, Service, part};

pub(crate) fn run(common: &Common, stat: &Stat) -> Result<(), Failure> {
    let client = connect::client(common, false)?;
    let object = connect::open(&client, &stat.path, &stat.access, None)?;
    let worker = client.connect()?;
    let blocks = object.size_bytes().div_ceil(worker.block_bytes);
    // Where it is comes from the service, which an object's facts do not depend on.
    let location = Service::find(common).and_then(|service| {
        let request = PathRequest {
            etag: Some(object.generation().etag.as_str().to_owned()),
            size_bytes: Some(object.size_bytes()),
            ..PathRequest::new(&stat.path)
        };
        let answer = service.locations(None, &[request])?;
        let locations: Vec<Location> = part(&answer, "locations")?;
        Ok((answer["locations"][0].clone(), locations))
    });
    let etag = object.generation().etag.as_str();
    match common.output {
        Output::Json => {
            let (blocks_json, problem) = match &location {
                Ok((answer, _)) => (answer["blocks"].clone(), Value::Null),
                Err(failure) => (Value::Null, failure.to_string().into()),
            };
            output::print_json(&json!({
                "path": stat.path.to_string(),
                "etag": etag,
                "size_bytes": object.size_bytes(),
                "block_bytes": worker.block_bytes,
                "block_count": blocks,
                "node": worker.node.as_str(),
                "blocks": blocks_json,
                "locality_problem": problem,
            }))
        }
        Output::Text => {
            let mut text = format!(
                "path    {}\netag    {etag}\nsize    {} ({} bytes)\nblocks  {blocks} of {}\nasked   {} ({})\n",
                stat.path,
                output::size(object.size_bytes()),
                object.size_bytes(),
                output::size(worker.block_bytes),
                worker.node,
                worker.worker,
            );
            match &location {
                Ok((_, locations)) => {
                    text.push('\n');
                    text.push_str(&locate::show(locations));
                }
                Err(failure) => {
                    text.extend(["\nwhere it is, is not known: ", &failure.to_string(), "\n"]);
                }
            }
            output::print(&text)
        }
    }
}
