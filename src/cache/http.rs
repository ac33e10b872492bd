//! The way to object stores: the HTTP client that registries are reached with.

use std::fmt;
use std::sync::Arc;

use http_body_util::BodyExt as _;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService,
};
use object_store::{ClientOptions, Error};
use reqwest::Url;

/// A client for a URL; also whether the user allows plain HTTP to anywhere.
pub type ClientFor = Arc<dyn Fn(&Url, bool) -> Result<reqwest::Client, BoxError> + Send + Sync>;
/// Why there is no client for a URL.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Makes connections to object stores.
#[derive(Clone)]
pub(super) struct Connector {
    client_for: ClientFor,
    may_be_plain: bool,
}

impl Connector {
    pub(super) fn new(client_for: ClientFor) -> Self {
        Self { client_for, may_be_plain: false }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("may_be_plain", &self.may_be_plain).finish_non_exhaustive()
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient, Error> {
        let may_be_plain = options.get_config_value(&ClientConfigKey::AllowHttp).as_deref() == Some("true");
        Ok(HttpClient::new(Self { may_be_plain, ..self.clone() }))
    }
}

type Called<'c> = std::pin::Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'c>>;

impl HttpService for Connector {
    fn call<'s, 'c>(&'s self, request: HttpRequest) -> Called<'c>
    where
        's: 'c,
        Self: 'c,
    {
        Box::pin(async move {
            let unknown = |error: BoxError| HttpError::new_boxed(HttpErrorKind::Unknown, error);
            let (parts, body) = request.into_parts();
            let url: Url = parts.uri.to_string().parse().map_err(|error| unknown(Box::new(error)))?;
            let client = (self.client_for)(&url, self.may_be_plain).map_err(unknown)?;
            let mut request = reqwest::Request::new(parts.method, url);
            *request.headers_mut() = parts.headers;
            *request.body_mut() = Some(reqwest::Body::wrap(body));
            // Whatever was asked for here can be asked for again: conditions see to that, and blobs are named by their bytes. The
            // crate asks again for a conditional write only where it takes the request for not sent.
            let again = HttpErrorKind::Request;
            let response = client.execute(request).await.map_err(|error| of_reqwest(error, again))?;
            let (parts, body) = http::Response::<reqwest::Body>::from(response).into_parts();
            let body = body.map_err(|error| of_reqwest(error, HttpErrorKind::Interrupted));
            Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
        })
    }
}

/// Which of them are worth another try; `other` is the kind of most.
fn of_reqwest(error: reqwest::Error, other: HttpErrorKind) -> HttpError {
    let kind = match &error {
        error if error.is_connect() => HttpErrorKind::Connect,
        error if error.is_timeout() => HttpErrorKind::Timeout,
        error if error.is_builder() => HttpErrorKind::Unknown,
        _ => other,
    };
    // A URL may be signed.
    HttpError::new(kind, error.without_url())
}
