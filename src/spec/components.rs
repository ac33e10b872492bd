//! `components.json`, the list of what AKS' `AgentBaker` bakes into its nodes.

use serde::Deserialize;

use super::file::Image;
use super::{SpecError, Wrong};
use crate::oci::{Platform, Reference};

#[derive(Deserialize)]
struct Components {
    #[serde(rename = "ContainerImages")]
    images: Vec<Component>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Component {
    /// With a `*` for each version.
    #[serde(rename = "downloadURL")]
    url: String,
    amd64_only_versions: Option<Vec<String>>,
    #[serde(rename = "multiArchVersionsV2")]
    versions: Option<Vec<Versions>>,
    /// Of older files.
    multi_arch_versions: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    latest_version: Option<String>,
    previous_latest_version: Option<String>,
}

/// The Linux images of a `components.json`; those for amd64 only are for that platform.
///
/// # Errors
/// [`SpecError`].
pub fn from_components(text: &str, place: &str) -> Result<Vec<Image>, SpecError> {
    let components: Components = serde_json::from_str(text).map_err(|error| {
        let what = error.to_string();
        let what = what.rsplit_once(" at line ").map_or(&*what, |(what, _)| what).to_owned();
        let wrong = Wrong { line: Some(error.line()), column: Some(error.column()), what };
        SpecError { place: place.to_owned(), wrong: vec![wrong] }
    })?;
    let (mut images, mut wrong) = (Vec::<Image>::new(), Vec::new());
    for Component { url, amd64_only_versions, versions, multi_arch_versions } in components.images {
        let versions = match versions {
            Some(versions) => {
                versions.into_iter().flat_map(|of| [of.latest_version, of.previous_latest_version]).flatten().collect()
            }
            None => multi_arch_versions.unwrap_or_default(),
        };
        let amd64 = amd64_only_versions.unwrap_or_default();
        let all = versions.iter().map(|version| (version, false)).chain(amd64.iter().map(|version| (version, true)));
        for (version, only_amd64) in all.filter(|(version, _)| !version.is_empty()) {
            let reference: Reference = match url.replace('*', version).parse() {
                Ok(reference) => reference,
                Err(error) => {
                    wrong.push(Wrong { line: None, column: None, what: error.to_string() });
                    continue;
                }
            };
            if images.iter().all(|image| image.named.reference() != Some(&reference)) {
                let platforms = only_amd64.then(|| Platform::new("linux", "amd64", "")).into_iter().collect();
                images.push(Image { platforms, ..Image::new(reference) });
            }
        }
    }
    if wrong.is_empty() { Ok(images) } else { Err(SpecError { place: place.to_owned(), wrong }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_urls() {
        let text = r#"{"ContainerImages": [
            {"downloadURL": "mcr.example/oss/pause:*", "amd64OnlyVersions": [],
             "multiArchVersionsV2": [{"renovateTag": "x", "latestVersion": "3.10.2"}, {"latestVersion": "3.6"}]},
            {"downloadURL": "mcr.example/oss/proxy:*", "amd64OnlyVersions": ["v1-amd64"], "windowsVersions": [{"latestVersion": "win"}],
             "multiArchVersionsV2": [{"latestVersion": "v2", "previousLatestVersion": "v1", "containerImagePrefetch": {}}]},
            {"downloadURL": "mcr.example/old:*", "amd64OnlyVersions": null, "multiArchVersions": ["1", ""]}
          ], "GPUContainerImages": [{"downloadURL": "mcr.example/gpu:*", "gpuVersion": {"latestVersion": "1"}}], "Packages": []}"#;
        let images = from_components(text, "components.json").expect("images");
        let names: Vec<String> = images.iter().map(|image| image.named.to_string()).collect();
        assert_eq!(
            names,
            [
                "mcr.example/oss/pause:3.10.2",
                "mcr.example/oss/pause:3.6",
                "mcr.example/oss/proxy:v2",
                "mcr.example/oss/proxy:v1",
                "mcr.example/oss/proxy:v1-amd64",
                "mcr.example/old:1",
            ]
        );
        assert_eq!(images[4].platforms, [Platform::new("linux", "amd64", "")]);
        assert!(images[3].platforms.is_empty());
    }

    #[test]
    fn what_is_wrong() {
        let error = |text| from_components(text, "c.json").expect_err("wrong").to_string();
        assert_eq!(error("{}"), "c.json:1:2: missing field `ContainerImages`");
        let bad = r#"{"ContainerImages": [{"downloadURL": "Mcr/x:*", "multiArchVersions": ["a b"]}]}"#;
        assert!(error(bad).starts_with("c.json: bad reference \"Mcr/x:a b\""), "{}", error(bad));
    }
}
