from lowrank.errors import unknown_name


def test_unknown_name_suggests_the_nearest():
    error = unknown_name("network", "resnet2", ["vgg16", "resnet20"], where="params.yaml")
    assert str(error) == (
        "params.yaml: unknown network 'resnet2'. Did you mean 'resnet20'? Known: resnet20, vgg16."
    )


def test_a_name_like_no_other_gets_no_suggestion():
    assert str(unknown_name("network", "zzz", ["vgg16"])) == (
        "unknown network 'zzz'. Known: vgg16."
    )
