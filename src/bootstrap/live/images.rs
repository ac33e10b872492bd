//! Image records: what keeps everything else once the lease is gone.

use std::collections::HashMap;

use tonic::Code;

use super::Result;
use super::api::{Empty, FieldMask, GetImage, GotImage, Image, PutImage};
use super::client::{Session, is, refused};
use crate::metadata::Labels;
use crate::oci::Descriptor;

const SERVICE: &str = "images.v1.Images";

/// Makes an image's record, or makes it name this target and have these labels besides those that it has.
pub(super) async fn put(session: &Session, name: &str, target: &Descriptor, labels: Labels) -> Result<()> {
    let labels: HashMap<String, String> = labels.into_iter().collect();
    let mut image = Image { name: name.to_owned(), labels, target: Some(target.into()) };
    loop {
        let create = PutImage { image: Some(image.clone()), mask: None };
        let created = session.call::<_, Empty>(&format!("{SERVICE}/Create"), create).await;
        if !is(&created, Code::AlreadyExists) {
            created.map_err(refused("creating image", name))?;
            session.change();
            return Ok(());
        }
        let got = session.call::<_, GotImage>(&format!("{SERVICE}/Get"), GetImage { name: name.to_owned() }).await;
        if is(&got, Code::NotFound) {
            continue;
        }
        let there = got.map_err(refused("looking up image", name))?.image.unwrap_or_default();
        image.labels.retain(|key, value| there.labels.get(key) != Some(value));
        let mut paths: Vec<String> = image.labels.keys().map(|key| format!("labels.{key}")).collect();
        if there.target != image.target {
            paths.push("target".to_owned());
        }
        if paths.is_empty() {
            return Ok(());
        }
        let update = PutImage { image: Some(image.clone()), mask: Some(FieldMask { paths }) };
        let updated = session.call::<_, Empty>(&format!("{SERVICE}/Update"), update).await;
        if is(&updated, Code::NotFound) {
            continue;
        }
        updated.map_err(refused("updating image", name))?;
        session.change();
        return Ok(());
    }
}
