terraform {
  required_version = ">= 1.9" # validations that look at other values

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 7.41, < 9" # direct VPC egress of functions
    }
    archive = {
      source  = "hashicorp/archive"
      version = ">= 2.4, < 3"
    }
  }
}
