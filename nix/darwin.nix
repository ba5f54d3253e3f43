# A Mac with nix-darwin that uses the cache. It adds to what the machine has, and replaces nothing.
{ config, lib, ... }:
let
  substituter = import ./substituter.nix { inherit config lib; };
  inherit (substituter) cache cfg private;
in
{
  inherit (substituter) options;

  config = lib.mkIf cfg.enable {
    assertions = substituter.assertions ++ [
      {
        assertion = private -> cfg.credentialsFile != null;
        message =
          "services.nix-binary-cache.client.credentialsFile is missing: the cache is private; "
          + "name the file with its reader's credential.";
      }
    ];

    nix.settings = substituter.settings;

    security.pki.certificates = lib.optional (cache.caCertificate != null) cache.caCertificate;

    launchd.daemons.nix-daemon = lib.mkIf (private && cfg.credentialsFile != null) {
      serviceConfig.EnvironmentVariables.AWS_SHARED_CREDENTIALS_FILE = cfg.credentialsFile;
    };
  };
}
