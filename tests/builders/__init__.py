"""What several tests share: builders of small runs, engines, flows, datasets and servers, one file for each topic."""
