"""The doors that speak HTTP. Each module serves one of Adobe's APIs; `app` puts them together."""
